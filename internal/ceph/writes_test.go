package ceph

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

// reads marks methods that write nothing into Ceph. Opening a connection or an image read-only writes nothing that lasts.
var reads = []string(nil)

// writers says of each exported method with which calls into librados and librbd it writes. TestUnknownOutcomes makes
// each of these calls fail, once without effect and once after it had its effect. copy_object is the shim's.
func writers() map[string][]string {
	object, lock := "rados_write_op_operate2", "rados_lock_exclusive"
	release := []string{"rbd_snap_unprotect", "rbd_snap_remove", "rbd_snap_remove_by_id"} // the last: TestReleaseOfRemnant
	discard := append([]string{"rbd_metadata_set", "rbd_update_features", "rbd_remove"}, release...)

	return map[string][]string{
		"Cluster.FSID": reads, "Cluster.Ping": reads, "Cluster.Close": reads, "Cluster.Full": reads, "Cluster.Images": reads,
		"Cluster.Load": reads, "Cluster.Keys": reads, "Cluster.Locks": reads,
		"Cluster.Create":     {object},
		"Cluster.Remove":     {object},
		"Cluster.Claim":      {lock, "rados_mon_command", object},
		"Cluster.Watch":      {object}, // the index, if there never was a job
		"Cluster.Turn":       {lock},   // of the look for orphans, tested with it
		"Cluster.RemoveLock": {object}, // the same
		"Cluster.Limit":      reads,    // tells copies how fast they may be
		"Claim.Record":       reads, "Claim.Images": reads, "Claim.Taken": reads,
		"Claim.Park":    reads, // whoever connects again writes the address: TestConnectionIsNotNoted
		"Claim.Save":    {object},
		"Claim.Renew":   {lock},
		"Claim.Release": {object, "rados_break_lock", "rados_notify2"},
		"Images.FSID":   reads, "Images.Stat": reads, "Images.Inspect": reads, "Images.Open": reads, "Images.Complete": reads, "Images.Close": reads,
		"Images.Traces": reads, "Images.Look": reads,
		"Images.Snapshot":    {"rbd_snap_create"},
		"Images.Protect":     {"rbd_snap_protect"},
		"Images.Release":     release,
		"Images.Clone":       append([]string{"rbd_clone3", "rbd_metadata_set", "rbd_metadata_remove"}, discard...),
		"Images.CopyObjects": append([]string{"rbd_create4", "copy_object", object, "rbd_update_features"}, discard...),
		"Images.Prepare":     reads,
		"Images.Seal":        {object, "rbd_snap_create", "rbd_snap_protect", "rbd_metadata_set"},
		"Images.Flatten":     {"copy_object", object, "rbd_update_features", "rbd_flatten_with_progress"},
		"Images.Discard":     append([]string{"rados_remove"}, discard...), // rados_remove: TestDeleteInFlatten
	}
}

// written lists all these calls.
func written() []string {
	var list []string
	for _, calls := range writers() {
		list = append(list, calls...)
	}
	slices.Sort(list)

	return slices.Compact(list)
}

// TestEveryMethodHasARow: whoever adds a method says how it writes, and so what has to be tested.
func TestEveryMethodHasARow(t *testing.T) {
	rows := writers()
	for _, value := range []any{&Cluster{}, &Claim{}, &Images{}} {
		kind := reflect.TypeOf(value)
		for n := range kind.NumMethod() {
			name := kind.Elem().Name() + "." + kind.Method(n).Name
			if _, found := rows[name]; !found {
				t.Errorf("%s has no row: say with which calls it writes, or that it only reads", name)
			}
			delete(rows, name)
		}
	}
	for name := range rows {
		t.Errorf("there is no method %s", name)
	}
	for _, call := range written() {
		if !strings.HasPrefix(call, "r") && call != "copy_object" {
			t.Errorf("%s is no call into Ceph", call)
		}
	}
}
