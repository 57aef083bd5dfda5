package workload

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestGatewayIsAsDescribed(t *testing.T) {
	const pipelines = 1000
	a, b := NewGateway(pipelines, 1), NewGateway(pipelines, 1)
	before := decode(t, a.Publish(0))
	require.InDelta(t, 2_000_000, len(a.value), 100_000)
	for _, changed := range []float64{0.01, 0.1, 1} {
		after := decode(t, a.Publish(changed))
		same, longer := 0, 0
		numbers := 0
		for name, stages := range after {
			if string(stages) == string(before[name]) {
				same++
				continue
			}
			was, is := figuresOf(t, before[name]), figuresOf(t, stages)
			for i := range is {
				numbers++
				if len(is[i]) != len(was[i]) {
					longer++
				}
			}
		}
		require.Equal(t, pipelines-int(changed*pipelines), same)
		require.InDelta(t, 0.5, float64(longer)/float64(numbers), 0.1, "share of changed numbers that change their length")
		before = after
	}
	b.Publish(0)
	b.Publish(0.01)
	b.Publish(0.1)
	require.Equal(t, string(a.value), string(b.Publish(1)), "equal seeds give equal values")
}

func decode(t *testing.T, value []byte) map[string]json.RawMessage {
	var pipelines map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(value, &pipelines))
	return pipelines
}

// figuresOf returns the numbers of a pipeline as they are written.
func figuresOf(t *testing.T, pipeline json.RawMessage) (numbers []string) {
	var parts map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(pipeline, &parts))
	for _, stage := range stages {
		var fs map[string]json.Number
		require.NoError(t, json.Unmarshal(parts[stage], &fs))
		for _, f := range figures {
			numbers = append(numbers, string(fs[f.name]))
		}
	}
	return numbers
}
