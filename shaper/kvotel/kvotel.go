// Package kvotel makes OpenTelemetry's spans of the steps of kvwrap's writes:
//
//	kvwrap.Install(cli, kvwrap.Config{Span: kvotel.Spans(otel.GetTracerProvider())})
//
// A large value that takes several proposals is a span "kvwrap write", with a child
// "kvwrap stage" where chunks are staged, and "kvwrap commit" for each attempt; what is
// deleted after a write was given up is "kvwrap give up", of its own. Puts that share a
// transaction are a span "kvwrap batch", below that of the first of them. A small put by
// itself has none: instrument the client's connection for that, whose spans are then below
// these.
//
// It is a package of its own so that kvwrap does not depend on OpenTelemetry.
package kvotel

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

const scope = "github.com/kvwrap/kvwrap/shaper/kvotel"

// Spans returns a function for kvwrap.Config.Span whose spans are a tracer's of provider. It is
// safe for concurrent use.
func Spans(provider trace.TracerProvider) func(context.Context, string, ...slog.Attr) (context.Context, func(error)) {
	tracer := provider.Tracer(scope)
	return func(ctx context.Context, step string, about ...slog.Attr) (context.Context, func(error)) {
		ctx, span := tracer.Start(ctx, step, trace.WithSpanKind(trace.SpanKindInternal))
		if span.IsRecording() {
			for _, a := range about {
				span.SetAttributes(attributeOf(a))
			}
		}
		return ctx, func(err error) {
			if err != nil {
				span.RecordError(err)
				span.SetStatus(codes.Error, err.Error())
			}
			span.End()
		}
	}
}

func attributeOf(a slog.Attr) attribute.KeyValue {
	key := attribute.Key("kvwrap." + a.Key)
	switch v := a.Value.Resolve(); v.Kind() {
	case slog.KindInt64:
		return key.Int64(v.Int64())
	case slog.KindBool:
		return key.Bool(v.Bool())
	default:
		return key.String(v.String())
	}
}
