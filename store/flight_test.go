package store

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"

	"srvfs/manifest"
)

// TestKeysLandByThemselves: who waits for one key of a batch gets it when it is
// there, and takes nothing from the others by leaving; the work ends with the
// last who waits.
func TestKeysLandByThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var work sync.WaitGroup
		f := &flights{ctx: t.Context(), work: &work}
		k := func(i byte) key { return key{workBlob, manifest.Digest{i}} }
		bad := errors.New("bad")
		next, ended := make(chan struct{}), make(chan error, 1)
		batch := func(ctx context.Context, mine []key, land landing) map[key]error {
			for _, one := range mine[:2] {
				select {
				case <-next:
				case <-ctx.Done():
				}
				if one == k(2) {
					land(one, bad)
				} else {
					land(one, nil)
				}
			}
			<-ctx.Done()
			ended <- ctx.Err()
			return map[key]error{k(1): bad} // it has landed without: too late
		}
		patient, give := context.WithCancel(t.Context())
		all := make(chan map[key]error, 1)
		go func() { all <- f.do(patient, asker{}, []key{k(1), k(2), k(3)}, batch) }()
		synctest.Wait()
		one := make(chan error, 2)
		for _, i := range []byte{1, 2} {
			go func() {
				one <- f.one(t.Context(), asker{}, k(i), func(context.Context) error { t.Error("done twice"); return nil })
			}()
		}
		synctest.Wait()
		select {
		case err := <-one:
			t.Fatalf("a key is done before its work is: %v", err)
		default:
		}
		next <- struct{}{}
		if err := <-one; err != nil {
			t.Errorf("the first: %v", err)
		}
		next <- struct{}{}
		if err := <-one; !errors.Is(err, bad) {
			t.Errorf("the second: %v", err)
		}
		synctest.Wait()
		select {
		case <-ended:
			t.Fatal("the batch was cancelled although one waits for the rest")
		default:
		}
		give()
		if errs := <-all; !errors.Is(errs[k(3)], context.Canceled) || errs[k(1)] != nil {
			t.Errorf("the batch's errors: %v", errs)
		}
		if err := <-ended; err == nil {
			t.Error("nobody waits, and the work goes on")
		}
		work.Wait()
		if len(f.aloft) != 0 {
			t.Errorf("%d keys are left", len(f.aloft))
		}
	})
}
