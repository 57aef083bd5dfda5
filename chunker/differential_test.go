package chunker

import (
	"testing"

	"github.com/kvwrap/kvwrap/internal/contract"
)

func TestDifferential(t *testing.T) {
	t.Parallel()
	t.Run("default", func(t *testing.T) { contract.Differential(t, open(Config{}), open(Config{})) })
	t.Run("everything", func(t *testing.T) { contract.Differential(t, open(everything), open(everything)) })
	t.Run("mixed", func(t *testing.T) {
		contract.Differential(t, open(everything), open(Config{}), open(Config{ReadOnly: true}))
	})
}
