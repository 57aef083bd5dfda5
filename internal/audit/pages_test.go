package audit

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kvwrap/kvwrap/internal/audit/audittest"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// TestPagesAreBoltsOwn compares a walk with bbolt's cursor, over files of many shapes.
func TestPagesAreBoltsOwn(t *testing.T) {
	for _, n := range []int{0, 1, 100, 5000} {
		path := filepath.Join(t.TempDir(), "db")
		db, err := bolt.Open(path, 0o600, &bolt.Options{NoSync: true, NoFreelistSync: n%2 == 0})
		require.NoError(t, err)
		random := rand.New(rand.NewPCG(uint64(n), 3))
		for range 3 { // what is deleted leaves pages free
			require.NoError(t, db.Update(func(tx *bolt.Tx) error {
				for _, name := range []string{"a", "key", "z"} {
					b, err := tx.CreateBucketIfNotExists([]byte(name))
					require.NoError(t, err)
					for i := range n {
						require.NoError(t, b.Put(fmt.Append(nil, name, i*7919%10_000), make([]byte, random.IntN(900)+i%97*100)))
					}
					for i := range n / 2 {
						require.NoError(t, b.Delete(fmt.Append(nil, name, i*7919%10_000)))
					}
				}
				return nil
			}))
		}
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		p, err := newPages(data, db.Info().PageSize)
		require.NoError(t, err)
		buckets := make(map[string]tree)
		_, err = p.walk(t.Context(), tree{root: p.root}, false, func(k, v []byte, bucket bool) error {
			require.True(t, bucket)
			buckets[string(k)], err = treeOf(v)
			return err
		})
		require.NoError(t, err)
		require.Len(t, buckets, 3)
		for name, tr := range buckets {
			var ours, theirs, backwards []string
			used, err := p.walk(t.Context(), tr, false, func(k, v []byte, _ bool) error {
				ours = append(ours, string(k)+string(v))
				return nil
			})
			require.NoError(t, err)
			_, err = p.walk(t.Context(), tr, true, func(k, v []byte, _ bool) error {
				backwards = append(backwards, string(k)+string(v))
				return nil
			})
			require.NoError(t, err)
			require.NoError(t, db.View(func(tx *bolt.Tx) error {
				c := tx.Bucket([]byte(name)).Cursor()
				for k, v := c.First(); k != nil; k, v = c.Next() {
					theirs = append(theirs, string(k)+string(v))
				}
				s := tx.Bucket([]byte(name)).Stats()
				require.Equal(t, s.BranchPageN+s.BranchOverflowN+s.LeafPageN+s.LeafOverflowN, used)
				return nil
			}))
			require.True(t, slices.Equal(theirs, ours))
			slices.Reverse(backwards)
			require.True(t, slices.Equal(theirs, backwards))
			first, err := p.first(tr)
			require.NoError(t, err)
			if len(theirs) > 0 {
				require.LessOrEqual(t, string(first), theirs[0])
			}
		}
		require.NoError(t, db.Close())
	}
}

// TestPagesThatLeadBack are of a file in which a branch has itself, its parent or a sibling
// for a child: it is refused, and does not run for ever.
func TestPagesThatLeadBack(t *testing.T) {
	g := audittest.New(t)
	for i := range 30_000 { // branches of branches
		g.Put(fmt.Sprintf("/a/%0100d", i), []byte("v"), 0)
	}
	whole, err := os.ReadFile(g.Close())
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "db")
	branches := 0
	for id := uint64(2); id < uint64(len(whole)/4096); id++ {
		page := whole[id*4096:]
		if native.Uint16(page[8:]) != branchPage || native.Uint64(page) != id {
			continue
		}
		branches++
		for _, at := range []int{0, int(native.Uint16(page[10:])) / 2, int(native.Uint16(page[10:])) - 1} {
			for _, to := range []uint64{id, 2, id - 1} {
				damaged := slices.Clone(whole)
				native.PutUint64(damaged[id*4096+pageHeader+uint64(at)*elementSize+8:], to)
				require.NoError(t, os.WriteFile(path, damaged, 0o600))
				d, err := OpenDB(path)
				require.NoError(t, err)
				_, err = d.Audit(t.Context(), Config{Space: testSpace(t)}, nil)
				require.NoError(t, d.Close())
				if err != nil { // it may be a branch that is not in use any more
					require.ErrorIs(t, err, ErrNotDB)
				}
			}
		}
		if branches == 8 {
			break
		}
	}
	require.Greater(t, branches, 3)
}

// FuzzPages changes a file at a few places. A walk ends, and stays inside the file.
func FuzzPages(f *testing.F) {
	g := audittest.New(f)
	for i := range 600 {
		g.Put(fmt.Sprintf("/a/%d", i), make([]byte, i%150), 0)
	}
	g.Put("/large", make([]byte, 10_000), 0)
	whole, err := os.ReadFile(g.Close())
	require.NoError(f, err)
	sound, err := newPages(whole, 4096)
	require.NoError(f, err)
	whole = whole[:sound.high*sound.size]
	f.Add(uint32(3*4096+8), uint64(1), uint32(4*4096+16), uint64(1<<40))
	f.Fuzz(func(t *testing.T, at uint32, x uint64, and uint32, y uint64) {
		data := slices.Clone(whole)
		native.PutUint64(data[int(at)%(len(data)-8):], x)
		native.PutUint64(data[int(and)%(len(data)-8):], y)
		p, err := newPages(data, 4096)
		if err != nil {
			return
		}
		_, err = p.walk(context.Background(), tree{root: p.root}, false, func(_, v []byte, bucket bool) error {
			if !bucket {
				return nil
			}
			tr, err := treeOf(v)
			if err != nil {
				return err
			}
			if _, err := p.first(tr); err != nil {
				return err
			}
			_, err = p.walk(context.Background(), tr, true, func(k, v []byte, _ bool) error {
				var r record
				return parseRecord(&r, k, v)
			})
			return err
		})
		_ = err // whether it is refused depends on where it was changed
	})
}
