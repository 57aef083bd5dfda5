package kvotel_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap"
	"github.com/kvwrap/kvwrap/coalesce"
	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/kvwrap/kvwrap/shaper/kvotel"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

func recorder(t *testing.T) (*sdktrace.TracerProvider, func(name string) []sdktrace.ReadOnlySpan) {
	r := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(r))
	t.Cleanup(func() { require.NoError(t, provider.Shutdown(context.Background())) })
	return provider, func(name string) []sdktrace.ReadOnlySpan {
		return slices.DeleteFunc(r.Ended(), func(s sdktrace.ReadOnlySpan) bool { return s.Name() != name })
	}
}

// TestStepsOfALargePut are spans below that of the caller.
func TestStepsOfALargePut(t *testing.T) {
	provider, spans := recorder(t)
	cli := etcdtest.Start(t, 1, nil).Client(t)
	kv, err := kvwrap.New(cli, kvwrap.Config{Span: kvotel.Spans(provider)})
	require.NoError(t, err)
	defer kv.Close()
	ctx, caller := provider.Tracer("test").Start(t.Context(), "caller")
	_, err = kv.Put(ctx, "small", "v")
	require.NoError(t, err)
	value := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{}).Read(value)
	_, err = kv.Put(ctx, "large", string(value))
	require.NoError(t, err)
	caller.End()

	writes, stages, commits := spans("kvwrap write"), spans("kvwrap stage"), spans("kvwrap commit")
	require.Len(t, writes, 1)
	require.Equal(t, caller.SpanContext().SpanID(), writes[0].Parent().SpanID())
	require.Len(t, stages, 1)
	require.Equal(t, writes[0].SpanContext().SpanID(), stages[0].Parent().SpanID())
	require.Len(t, commits, 1)
	require.Equal(t, writes[0].SpanContext().SpanID(), commits[0].Parent().SpanID())
	attributes := map[string]any{}
	for _, a := range stages[0].Attributes() {
		attributes[string(a.Key)] = a.Value.AsInterface()
	}
	require.Equal(t, "large", attributes["kvwrap.key"])
	require.Greater(t, attributes["kvwrap.chunks"], int64(100))

	// An error is that of the span, and what is deleted afterwards one of its own.
	dead, cancel := context.WithCancel(ctx)
	cancel()
	_, err = kv.Put(dead, "large", string(value[:len(value)/2]))
	require.ErrorIs(t, err, context.Canceled)
	failed := spans("kvwrap write")[1]
	require.Equal(t, codes.Error, failed.Status().Code)
}

// TestABatchIsASpan of several puts.
func TestABatchIsASpan(t *testing.T) {
	provider, spans := recorder(t)
	cli := etcdtest.Start(t, 1, nil).Client(t)
	kv, err := kvwrap.New(cli, kvwrap.Config{
		Span:  kvotel.Spans(provider),
		Rules: []kvwrap.Rule{{Coalesce: coalesce.GroupCommit, FlushEvery: 10 * time.Millisecond}},
	})
	require.NoError(t, err)
	defer kv.Close()
	failed := make(chan error, 20)
	for i := range 20 {
		kv.PutAsync(t.Context(), string(rune('a'+i)), "v", func(_ *clientv3.PutResponse, err error) { failed <- err })
	}
	require.NoError(t, kv.Flush(t.Context()))
	for range 20 {
		err = errors.Join(err, <-failed)
	}
	require.NoError(t, err)
	require.Eventually(t, func() bool { return len(spans("kvwrap batch")) > 0 }, 10*time.Second, time.Millisecond)
}
