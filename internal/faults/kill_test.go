//go:build unix

package faults

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/kvwrap/kvwrap"
	"github.com/kvwrap/kvwrap/coalesce"
	"github.com/kvwrap/kvwrap/internal/etcdtest"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// producer is a process that commits offsets until it is killed.
const (
	producerRole = "producer"
	partitions   = 20
)

// production is what a producer is told when it starts.
type production struct {
	Endpoints []string
	From      int    // the first offset
	Owner     int64  // CreateRevision of the key ownerKey, where it is to write under a fence
	Late      string // the key to write in place of all others, and another one without the fence
}

// report is what a producer has done, a line each.
type report struct {
	Acked   int `json:",omitempty"` // the newest put that was answered
	Put     int `json:",omitempty"` // the newest that PutAsync has taken,
	Pending int `json:",omitempty"` // and what Pending said after that
}

const ownerKey = prefix + "owner"

func behindKey(n int) string { return fmt.Sprintf("%sbehind/%02d", prefix, n%partitions) }

var producerRules = []kvwrap.Rule{
	{Prefix: prefix + "sync", Coalesce: coalesce.GroupCommit},
	{Prefix: prefix + "behind", Coalesce: coalesce.LastWriteWins, FlushEvery: 30 * time.Millisecond},
	{Prefix: prefix + "max", Coalesce: coalesce.Max, FlushEvery: 10 * time.Millisecond},
}

func serveProducer(argument string) error {
	var p production
	if err := json.Unmarshal([]byte(argument), &p); err != nil {
		return err
	}
	cli, err := newClient(p.Endpoints)
	if err != nil {
		return err
	}
	kv, err := kvwrap.New(cli, kvwrap.Config{Rules: producerRules})
	if err != nil {
		return err
	}
	ctx := context.Background()
	if p.Late != "" {
		return p.beLate(ctx, kv)
	}
	var mu sync.Mutex
	out := json.NewEncoder(os.Stdout)
	tell := func(r report) error {
		mu.Lock()
		defer mu.Unlock()
		return out.Encode(r)
	}
	go func() {
		pace := time.NewTicker(200 * time.Microsecond)
		for n := p.From; ; n++ {
			<-pace.C
			kv.PutAsync(ctx, behindKey(n), strconv.Itoa(n), nil)
			if tell(report{Put: n, Pending: kv.Pending().Puts}) != nil {
				os.Exit(1)
			}
			for i := range 4 { // numbers that go up and down, of which the largest is to stay
				kv.PutAsync(ctx, prefix+"max", strconv.Itoa((n-p.From)*3-7*i+100), nil)
			}
		}
	}()
	for n := p.From; ; n++ {
		if _, err := kv.Put(ctx, prefix+"sync", strconv.Itoa(n)); err != nil {
			return err
		}
		if err := tell(report{Acked: n}); err != nil {
			return err
		}
	}
}

// beLate makes ready, says so, waits for a line, and writes two keys in one batch.
func (p production) beLate(ctx context.Context, kv *kvwrap.KV) error {
	owned := coalesce.WithFence(ctx, clientv3.Compare(clientv3.CreateRevision(ownerKey), "=", p.Owner))
	kv.PutAsync(owned, p.Late, "in time", nil)
	if err := kv.Flush(ctx); err != nil {
		return err
	}
	fmt.Println("ready")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	kv.PutAsync(owned, p.Late, "late", nil)
	kv.PutAsync(ctx, p.Late+"/unfenced", "late", nil)
	return kv.Flush(ctx)
}

func startProducer(t *testing.T, p production) *etcdtest.Process {
	argument, err := json.Marshal(p)
	require.NoError(t, err)
	process, err := etcdtest.StartProcess(producerRole, string(argument))
	require.NoError(t, err)
	t.Cleanup(process.Kill)
	return process
}

// number returns what is stored at a key, 0 where there is none.
func number(t *testing.T, cli *clientv3.Client, key string) int {
	resp, err := cli.Get(t.Context(), key)
	require.NoError(t, err)
	if len(resp.Kvs) == 0 {
		return 0
	}
	n, err := strconv.Atoi(string(resp.Kvs[0].Value))
	require.NoError(t, err)
	return n
}

// TestAProcessThatIsKilled kills processes that commit offsets, and holds what is there
// then to what they had said: what was answered is there; of what PutAsync had taken at
// most what Pending said is not; and no offset under Max went back, also not when the
// next process begins anew.
func TestAProcessThatIsKilled(t *testing.T) {
	cluster := etcdtest.Start(t, 1, nil)
	cli := cluster.Client(t)
	next := 1
	for round := range 5 {
		process := startProducer(t, production{Endpoints: cluster.Endpoints(), From: next})
		var acked, last report
		lines := 0
		read := func() bool {
			line, err := process.Out.ReadBytes('\n')
			if err != nil {
				return false
			}
			var r report
			if json.Unmarshal(line, &r) != nil {
				return false // the line in which it was killed
			}
			if lines++; r.Acked > 0 {
				acked = r
			} else {
				last = r
			}
			return true
		}
		for enough := 500 + 137*round; lines < enough; {
			require.True(t, read(), "the producer has ended by itself")
		}
		process.Kill()
		for read() { // what it had said before
		}
		require.NotZero(t, acked.Acked)
		require.NotZero(t, last.Put)
		require.GreaterOrEqual(t, number(t, cli, prefix+"sync"), acked.Acked, "an acknowledged put is lost")
		lost := 0
		for n := next; n <= last.Put; n++ {
			if number(t, cli, behindKey(n)) < n {
				lost++
			}
		}
		t.Logf("of %d puts behind %d were pending, and %d are lost", last.Put-next+1, last.Pending, lost)
		require.LessOrEqual(t, lost, last.Pending)
		next = max(last.Put, acked.Acked) + 100
	}
	highest, changes := 0, 0
	for watch := cli.Watch(t.Context(), prefix+"max", clientv3.WithRev(1)); highest < number(t, cli, prefix+"max"); {
		for _, ev := range (<-watch).Events {
			n, err := strconv.Atoi(string(ev.Kv.Value))
			require.NoError(t, err)
			require.Greater(t, n, highest, "an offset has gone back")
			highest = n
			changes++
		}
	}
	require.Greater(t, changes, 5)
}

// TestAKilledOwnersLateBatch holds back the last batch of a process, kills the process,
// has its ownership pass to somebody else, and lets the batch go.
func TestAKilledOwnersLateBatch(t *testing.T) {
	cluster := etcdtest.Start(t, 1, nil)
	cli := cluster.Client(t)
	proxy, err := etcdtest.NewProxy(cluster.Endpoints()[0])
	require.NoError(t, err)
	t.Cleanup(proxy.Close)
	owner, err := cli.Put(t.Context(), ownerKey, "one")
	require.NoError(t, err)
	const key = prefix + "behind/late"
	process := startProducer(t, production{Endpoints: []string{proxy.Address()}, Owner: owner.Header.Revision, Late: key})
	line, err := process.Out.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "ready\n", line)

	release := proxy.Hold()
	defer release()
	_, err = process.In.Write([]byte("go\n"))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return proxy.Holds(key + "/unfenced") }, time.Minute, time.Millisecond)
	process.Kill()
	_, err = cli.Delete(t.Context(), ownerKey)
	require.NoError(t, err)
	_, err = cli.Put(t.Context(), ownerKey, "two")
	require.NoError(t, err)
	release()
	require.Eventually(t, func() bool {
		resp, err := cli.Get(t.Context(), key+"/unfenced")
		return err == nil && len(resp.Kvs) == 1
	}, time.Minute, time.Millisecond, "the batch never comes")
	resp, err := cli.Get(t.Context(), key)
	require.NoError(t, err)
	require.Equal(t, "in time", string(resp.Kvs[0].Value), "what was under the fence has not landed with it")
}
