package service

import "testing"

func TestCanLayer(t *testing.T) {
	if ok, why := CanLayer(); !ok {
		t.Fatal(why)
	}
}
