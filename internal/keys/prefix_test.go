package keys

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPrefix(t *testing.T) {
	for _, c := range []struct {
		key   string
		depth int
		want  string
	}{
		{"/registry/pods/default/web-0", 2, "/registry/pods/"},
		{"/registry/pods/default/web-0", 1, "/registry/"},
		{"/registry/pods/default/web-0", 9, "/registry/pods/default/"},
		{"a/b/c", 1, "a/"},
		{"abc", 2, ""},
		{"/", 2, ""},
		{"", 2, ""},
	} {
		require.Equal(t, c.want, string(Prefix([]byte(c.key), '/', c.depth)), "%+v", c)
	}
}
