package ceph

import (
	"encoding/hex"
	"testing"
)

// TestObjectMapBytes: as librbd 16.2.15 sent them for a rebuilt map, which TestMapsAreAsLibrbdMakesThem compares in full.
func TestObjectMapBytes(t *testing.T) {
	for name, c := range map[string]struct {
		objects uint64
		there   []uint64
		state   byte
		want    string
	}{
		"none":         {0, nil, objectExists, "0e000000" + "010108000000" + "0000000000000000" + "" + "00000000"},
		"holes only":   {4, nil, objectExists, "0e000000" + "010108000000" + "0400000000000000" + "00" + "00000000"},
		"first, last":  {5, []uint64{0, 4}, objectExists, "0e000000" + "010108000000" + "0500000000000000" + "4040" + "00000000"},
		"all, clean":   {4, []uint64{0, 1, 2, 3}, objectClean, "0e000000" + "010108000000" + "0400000000000000" + "ff" + "00000000"},
		"some, exists": {8, []uint64{1, 3, 6}, objectExists, "0e000000" + "010108000000" + "0800000000000000" + "1104" + "00000000"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := hex.EncodeToString(objectMap(c.objects, c.there, c.state)); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

func TestMapObjectNames(t *testing.T) {
	if got := mapObject("abc", noSnap) + " " + mapObject("abc", 0x1f); got != "rbd_object_map.abc rbd_object_map.abc.000000000000001f" {
		t.Error(got)
	}
}
