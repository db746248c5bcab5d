package ceph

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/ceph/go-ceph/rados"

	"github.com/cinderlift/cinderlift/worker"
)

// How the journal lies in RADOS, all in one namespace:
//
//	job.<key>   data: the epoch, 8 bytes big endian; omap: record, owner, owner_addr, filled; cls_lock "lease"
//	vol.<id>    empty; cls_lock "lease"
//	index       omap: the keys of all jobs
//
// The epoch is the object's data because a comparison of data (cmpext) can be part of a write operation. The index is
// there because listing a namespace costs the OSDs a walk over the whole pool, and Glance's pool is large.
const (
	jobPrefix    = "job."
	volumePrefix = "vol."
	indexObject  = "index"

	keyRecord = "record"
	keyOwner  = "owner"
	keyAddr   = "owner_addr"
	keyFilled = "filled"
	keyFenced = "fenced"

	maxErrno = 4095 // a cmpext that differs at byte n answers -(MAX_ERRNO + n) (ceph 16.2.15 osd/PrimaryLogPG.cc:5290)
)

var errEpoch = errors.New("the epoch is another")

// entry is a job as it lies in the journal.
type entry struct {
	record worker.Record
	addr   string // of the owner's connection; "" after a clean release
	filled string // which image's objects a flatten has begun to make
	fenced string // owners before the last, see history
}

// Create implements worker.Journal. The index comes first: a crash between the two leaves a key without a record, which
// readers pass over, and never a record that nobody finds. And once more after the record: a Remove of the record before,
// under the same key, may have taken the key away in between. A crash just there is before the request is acknowledged, so
// Create comes again.
func (c *Cluster) Create(ctx context.Context, r worker.Record) error {
	key := r.Job.Key()
	raw, err := json.Marshal(r)
	if err != nil {
		return refuse("create job "+key, worker.ReasonInternal, worker.GiveUp, "encode the record: %w", err)
	}
	err = onErr(ctx, c, func(k *control) error {
		if err := k.index(key); err != nil {
			return err
		}
		if err := k.write(key, r, raw); err != nil {
			return err
		}

		return k.index(key)
	})
	if is(err, eexist) {
		return fmt.Errorf("create job %s: %w", key, worker.ErrExists)
	}

	return classify("create job "+key, err)
}

// write makes the record's object.
func (k *control) write(key string, r worker.Record, raw []byte) error {
	op := rados.CreateWriteOp()
	defer op.Release()
	op.Create(rados.CreateExclusive)
	op.WriteFull(epochBytes(r.Epoch))
	op.SetOmap(map[string][]byte{keyRecord: raw, keyOwner: []byte(r.Owner), keyAddr: nil})

	return op.Operate(k.io, jobPrefix+key, rados.OperationNoFlag)
}

func (k *control) index(key string) error {
	op := rados.CreateWriteOp()
	defer op.Release()
	op.Create(rados.CreateIdempotent)
	op.SetOmap(map[string][]byte{key: nil})

	return op.Operate(k.io, indexObject, rados.OperationNoFlag)
}

// Load implements worker.Journal. The stamp is the object's version: renewing the lock writes the object as well.
func (c *Cluster) Load(ctx context.Context, key string) (worker.Record, error) {
	rec, err := on(ctx, c, func(k *control) (worker.Record, error) {
		own, err := k.versioned()
		if err != nil {
			return worker.Record{}, err
		}
		defer own.Destroy()
		e, err := load(own, key)
		if err != nil {
			return worker.Record{}, err
		}
		e.record.Unreleased = e.addr != ""
		e.record.Stamp, err = own.GetLastVersion()

		return e.record, err
	}, nil)
	if err != nil {
		return worker.Record{}, named("load job "+key, err)
	}

	return rec, nil
}

// named classifies what is not one of the journal's own errors.
func named(op string, err error) error {
	for _, known := range []error{worker.ErrExists, worker.ErrNotFound, worker.ErrHeld, worker.ErrNewer} {
		if errors.Is(err, known) {
			return fmt.Errorf("%s: %w", op, err)
		}
	}

	return classify(op, err)
}

// load reads data and omap in one operation, so that they belong together.
func load(io *rados.IOContext, key string) (entry, error) { return loadIf(io, key, nil) }

// loadIf is load on condition that the object is locked by a claim of this connection. ErrHeld when it is not.
func loadIf(io *rados.IOContext, key string, locked []byte) (entry, error) {
	op := rados.CreateReadOp()
	defer op.Release()
	if locked != nil {
		op.Exec(lockClass, lockAssert, locked)
	}
	epoch := make([]byte, 8)
	op.AssertExists()
	data := op.Read(0, epoch)
	omap := op.GetOmapValuesByKeys([]string{keyRecord, keyOwner, keyAddr, keyFilled, keyFenced})
	err := op.Operate(io, jobPrefix+key, rados.OperationNoFlag)
	if is(err, enoent) {
		return entry{}, worker.ErrNotFound
	}
	if is(err, ebusy) {
		return entry{}, fmt.Errorf("the lease was lost right after it was taken: %w", worker.ErrHeld)
	}
	if err != nil {
		return entry{}, err
	}
	if data.BytesRead != int64(len(epoch)) {
		return entry{}, refuse("load job "+key, worker.ReasonInternal, worker.GiveUp, "%d bytes where the epoch should be", data.BytesRead)
	}
	values, err := collect(omap)
	if err != nil {
		return entry{}, err
	}

	return decode(key, binary.BigEndian.Uint64(epoch), values)
}

func collect(omap *rados.ReadOpOmapGetValsByKeysStep) (map[string]string, error) {
	values := map[string]string{}
	for {
		kv, err := omap.Next()
		if err != nil {
			return nil, err
		}
		if kv == nil {
			return values, nil
		}
		values[kv.Key] = string(kv.Value)
	}
}

// decode lets epoch and owner of the object win over those in the record: a claim writes only the former.
func decode(key string, epoch uint64, values map[string]string) (entry, error) {
	e := entry{addr: values[keyAddr], filled: values[keyFilled], fenced: values[keyFenced]}
	if err := json.Unmarshal([]byte(values[keyRecord]), &e.record); err != nil {
		return entry{}, refuse("load job "+key, worker.ReasonInternal, worker.GiveUp, "decode the record: %w", err)
	}
	if e.record.Job.Key() != key {
		return entry{}, refuse("load job "+key, worker.ReasonInternal, worker.GiveUp, "the record is of job %q", e.record.Job.Key())
	}
	e.record.Epoch, e.record.Owner = epoch, values[keyOwner]

	return e, nil
}

// Keys implements worker.Journal. A key may lack its record: its creation or its removal was cut short.
func (c *Cluster) Keys(ctx context.Context) ([]string, error) {
	keys, err := on(ctx, c, func(k *control) ([]string, error) {
		all, err := k.io.GetAllOmapValues(indexObject, "", "", 1000)
		if is(err, enoent) {
			return nil, nil
		}
		keys := make([]string, 0, len(all))
		for key := range all {
			keys = append(keys, key)
		}
		slices.Sort(keys)

		return keys, err
	}, nil)

	return keys, classify("list the jobs", err)
}

// Remove implements worker.Journal. The record goes first: see Create.
func (c *Cluster) Remove(ctx context.Context, key string) error {
	return classify("remove job "+key, onErr(ctx, c, func(k *control) error {
		own, err := k.versioned()
		if err != nil {
			return err
		}
		defer own.Destroy()
		if err := removeClosed(own, key); err != nil {
			return err
		}

		return unlist(own, key)
	}))
}

// removeClosed asserts the version that it has read, which goes up also from one object to the next of the same name. The
// epoch would not do: each record begins with the same.
func removeClosed(own *rados.IOContext, key string) error {
	e, err := load(own, key)
	if errors.Is(err, worker.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if !e.record.Closed {
		return refuse("remove job "+key, worker.ReasonConflict, worker.GiveUp, "the journal has an open job under this key")
	}
	version, err := own.GetLastVersion()
	if err != nil {
		return err
	}
	op := rados.CreateWriteOp()
	defer op.Release()
	op.AssertExists()
	op.AssertVersion(version)
	op.Remove()
	err = op.Operate(own, jobPrefix+key, rados.OperationNoFlag)
	switch {
	case is(err, enoent):
		return nil
	case is(err, erange, eoverflow):
		return refuse("remove job "+key, worker.ReasonConflict, worker.Retry, "somebody has just written it")
	default:
		return err
	}
}

const unlistTries = 10

// unlist takes a key without a record out of the index. The order makes it safe beside Create: the record is not there,
// and nobody has written into the index from before that look until the key goes. So whoever makes the record writes its
// key after that.
func unlist(own *rados.IOContext, key string) error {
	for range unlistTries {
		_, err := own.Stat(indexObject)
		if is(err, enoent) {
			return nil
		}
		if err != nil {
			return err
		}
		version, err := own.GetLastVersion()
		if err != nil {
			return err
		}
		if _, err := own.Stat(jobPrefix + key); err == nil || !is(err, enoent) {
			return err // nil: a new record has the key
		}
		if err := dropKey(own, key, version); !is(err, erange, eoverflow) {
			return err
		}
	}

	return refuse("remove job "+key, worker.ReasonCephUnavailable, worker.Retry, "others keep writing into the journal's index")
}

// dropKey fails with ERANGE when the index was written since it had this version.
func dropKey(own *rados.IOContext, key string, version uint64) error {
	op := rados.CreateWriteOp()
	defer op.Release()
	op.AssertVersion(version)
	op.RmOmapKeys([]string{key})

	return op.Operate(own, indexObject, rados.OperationNoFlag)
}

// update writes into a job's object if its epoch is from. errEpoch when it is another, or the object is gone.
func (k *control) update(key string, from uint64, values map[string][]byte) error {
	op := rados.CreateWriteOp()
	defer op.Release()
	op.AssertExists()
	op.CmpExt(epochBytes(from), 0)
	op.SetOmap(values)

	return asEpoch(op.Operate(k.io, jobPrefix+key, rados.OperationNoFlag))
}

// own is update that makes the epoch another one, on condition that the object is locked by a claim of this connection: only
// the owner of the lease becomes, and is, the owner of the job, however long its process slept in between.
func (k *control) own(key string, from, to uint64, locked []byte, values map[string][]byte) error {
	op := rados.CreateWriteOp()
	defer op.Release()
	op.Exec(lockClass, lockAssert, locked)
	op.CmpExt(epochBytes(from), 0)
	op.WriteFull(epochBytes(to))
	op.SetOmap(values)
	err := op.Operate(k.io, jobPrefix+key, rados.OperationNoFlag)
	if is(err, ebusy) {
		return errEpoch
	}

	return asEpoch(err)
}

func asEpoch(err error) error {
	if e, ok := errnoOf(err); ok && (e == enoent || int(e) >= maxErrno) {
		return errEpoch
	}

	return err
}

func epochBytes(epoch uint64) []byte {
	return binary.BigEndian.AppendUint64(nil, epoch)
}
