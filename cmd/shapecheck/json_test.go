package main

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestJSONIsDocumented looks for each field of each document in docs/json.md.
func TestJSONIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/json.md")
	require.NoError(t, err)
	sections := make(map[string]string)
	for section := range strings.SplitSeq(string(text), "\n## ") {
		title, rest, _ := strings.Cut(section, "\n")
		sections[title] = rest
	}
	shared := sections["A load and its projection"] + sections["A sample"] + sections["An audit"]
	for title, of := range map[string]struct {
		documents []any
		in        string
	}{
		"bench":   {[]any{benchReport{}}, ""},
		"get":     {[]any{keyDocument{}, chunkList{}}, ""},
		"project": {[]any{projectDocument{}}, shared},
		"tune":    {[]any{tuneDocument{}}, shared},
		"reclaim": {[]any{reclaimRound{}}, ""},
		"verify":  {[]any{verifyReport{}}, ""},
	} {
		require.Contains(t, sections, title)
		for _, document := range of.documents {
			for name := range fieldNames(reflect.TypeOf(document), map[string]bool{}, map[reflect.Type]bool{}) {
				in := sections[title] + of.in
				require.True(t, strings.Contains(in, "`"+name+"`") || strings.Contains(in, "."+name+"`") || strings.Contains(in, "."+name+"[]`"), "%s: %s", title, name)
			}
		}
	}
}

// fieldNames adds the names that a type and all below it have in JSON. Those that marshal
// themselves are left out.
func fieldNames(of reflect.Type, names map[string]bool, seen map[reflect.Type]bool) map[string]bool {
	switch of.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Array:
		return fieldNames(of.Elem(), names, seen)
	case reflect.Struct:
	default:
		return names
	}
	if seen[of] || of == reflect.TypeFor[time.Time]() || of.Implements(reflect.TypeFor[json.Marshaler]()) {
		return names
	}
	seen[of] = true
	for field := range of.Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		switch {
		case name == "-" || !field.IsExported() && !field.Anonymous:
			continue
		case name == "" && !field.Anonymous:
			name = field.Name
		}
		if name != "" {
			names[name] = true
		}
		fieldNames(field.Type, names, seen)
	}
	return names
}
