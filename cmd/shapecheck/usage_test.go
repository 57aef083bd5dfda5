package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestUsage(t *testing.T) {
	code, stdout, _ := shapecheck(t)
	require.Equal(t, exitOK, code)
	require.Regexp(t, `demo +Plays a gateway`, stdout)
	require.NotRegexp(t, `\n +serve `, stdout)
	code, stdout, _ = shapecheck(t, "demo", "--help")
	require.Equal(t, exitOK, code)
	require.Contains(t, stdout, "(default 210)")

	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"dmeo"}, `unknown command "dmeo": see shapecheck --help`},
		{[]string{"demo", "now"}, `demo takes no arguments, got ["now"]: see shapecheck demo --help`},
		{[]string{"demo", "offsets", "now"}, `offsets takes no arguments, got ["now"]: see shapecheck demo offsets --help`},
		{[]string{"demo", "offsets", "--rate", "0"}, `--rate is 0: choose 1 to 100000 commits a second`},
		{[]string{"demo", "offsets", "--partitions", "-1"}, `--partitions is -1: choose 1 to 100000`},
		{[]string{"demo", "offsets", "--duration", "1ms"}, `--duration is 1ms: choose 1s to 1m`},
		{[]string{"demo", "offsets", "--flush", "6s"}, `--flush is 6s: choose 0 to --duration, 5s`},
		{[]string{"demo", "offsets", "--user", "root"}, `--user is for --endpoints, which is not set`},
		{[]string{"demo", "--fast"}, `unknown flag: --fast: see shapecheck demo --help`},
		{[]string{"demo", "--pipelines", "many"}, `invalid argument "many"`},
		{[]string{"demo", "--pipelines", "0"}, `--pipelines is 0: choose 1 to 4000`},
		{[]string{"demo", "--changed", "101"}, `--changed is 101: choose 0 to 100 per cent`},
		{[]string{"demo", "--changed", "NaN"}, `--changed is NaN`},
		{[]string{"demo", "--publishes", "100"}, `--publishes is 100, --snapshot-catchup-entries 100: choose 201 publishes or more`},
		{[]string{"demo", "--snapshot-catchup-entries", "0"}, `--snapshot-catchup-entries is 0`},
		{[]string{"demo", "--endpoints", "127.0.0.1:1", "--snapshot-catchup-entries", "9"}, `is for the demo's own servers`},
		{[]string{"demo", "--endpoints", "127.0.0.1:1", "--publishes", "-1"}, `--publishes is -1: choose 1 to 1000000`},
		{[]string{"demo", "--publishes", "9000000000000000"}, `--publishes is 9000000000000000: choose 1 to 1000000`},
		{[]string{"demo", "--snapshot-catchup-entries", "18446744073709551615"}, `--snapshot-catchup-entries is 18446744073709551615: choose 1 to 1000000`},
		{[]string{"demo", "--endpoints", ""}, `give an address`},
		{[]string{"demo", "--endpoints", "127.0.0.1:1,"}, `has an empty address`},
		{[]string{"demo", "--endpoints", "127.0.0.1:1", "--dial-timeout", "-3s"}, `--dial-timeout is -3s: give a time above zero`},
		{[]string{"demo", "--user", "root"}, `--user is for --endpoints, which is not set`},
		{[]string{"demo", "--endpoints", "127.0.0.1:1", "--password", "x"}, `--password without --user`},
		{[]string{"roles"}, `--endpoints []: give the client addresses`},
		{[]string{"roles", "--endpoints", "127.0.0.1:1,"}, `give the client addresses`},
		{[]string{"roles", "--endpoints", "127.0.0.1:1", "--dial-timeout", "0s"}, `--dial-timeout 0s: give a time`},
		{[]string{"unwrap", "--endpoints", ""}, `--endpoints []: give the client addresses`},
		{[]string{"unwrap", "k"}, `unwrap takes no arguments`},
		{[]string{"roles", "--reserved-prefix", `\x0`}, `--reserved-prefix \x0: invalid syntax`},
		{[]string{"roles", "--reserved-prefix", `\xff`}, `--reserved-prefix: reserved prefix "\xff" has no byte but 0xff`},
		{[]string{"demo", "--endpoints", "127.0.0.1:1", "--cert", "x"}, `--cert "x" and --key "": set both or neither`},
	} {
		code, stdout, stderr := shapecheck(t, c.args...)
		require.Equal(t, exitFailed, code, "%q: %s", c.args, stderr)
		require.Contains(t, stderr, c.says)
		require.Empty(t, stdout)
	}

	for _, c := range []struct {
		code int
		args []string
		says string
	}{
		{exitUnreachable, []string{"demo", "--endpoints", "127.0.0.1:1", "--dial-timeout", "100ms"}, `asking 127.0.0.1:1 for its state: context deadline exceeded: is it the client address`},
		{exitUnreachable, []string{"roles", "--endpoints", "127.0.0.1:1", "--dial-timeout", "100ms"}, `asking [127.0.0.1:1]: context deadline exceeded: are these the client addresses`},
		{exitUnreachable, []string{"roles", "--endpoints", "127.0.0.1:1", "--dial-timeout", "100ms", "--user", "root:x"}, `asking [127.0.0.1:1]: context deadline exceeded: are these the client addresses`},
		{exitFailed, []string{"demo", "--endpoints", "https://127.0.0.1:1", "--cacert", "/none"}, `TLS: open /none`},
	} {
		code, _, stderr := shapecheck(t, c.args...)
		require.Equal(t, c.code, code, "%q: %s", c.args, stderr)
		require.Contains(t, stderr, c.says)
	}
}
