// Package chunker splits large values into chunks.
package chunker
