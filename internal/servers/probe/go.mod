module github.com/kvwrap/kvwrap/internal/servers/probe

go 1.26.0
