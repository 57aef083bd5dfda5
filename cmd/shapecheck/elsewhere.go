package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/kvwrap/kvwrap/internal/format"
)

// elsewhere returns the flags with which the value at key can be read, where those that it
// was looked for with are not the ones: the manifest there names the reserved prefix of its
// client, and a digest of the key as that client knows it. A client in a namespace knows the
// end of a key only, so what ends have that digest say which namespace it is. It returns ""
// where the flags are right, and where no namespace has such a key.
func elsewhere(namespace string, space format.Keyspace, key []byte, m *format.Manifest) string {
	var flags []string
	if m.Prefix != space.Prefix() {
		quoted := strconv.Quote(m.Prefix)
		flags = append(flags, fmt.Sprintf("with --reserved-prefix '%s'", quoted[1:len(quoted)-1]))
	}
	if whole := namespace + string(key); m.KeyDigest != format.KeyDigest(key) {
		for end := range len(whole) {
			if m.KeyDigest != format.KeyDigest([]byte(whole[end:])) {
				continue
			}
			if end == 0 {
				flags = append(flags, "without --namespace")
			} else {
				flags = append(flags, fmt.Sprintf("with --namespace %q", whole[:end]))
			}
			break
		}
	}
	return strings.Join(flags, " and ")
}
