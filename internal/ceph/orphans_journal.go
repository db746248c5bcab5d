package ceph

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"time"

	"github.com/ceph/go-ceph/rados"

	"github.com/cinderlift/cinderlift/worker"
)

// turnLock is on the index: an object of its own would be one more that nobody ever removes.
const turnLock = "reap"

// Turn reports whether it is this caller's turn, which it is once in every, for all workers of the journal together: a
// lock that is taken and left to expire elects who looks for orphans, and paces it. Whoever dies during its turn is
// followed by somebody else when every is over. It does not retry; an error may have used the turn up.
func (c *Cluster) Turn(ctx context.Context, every time.Duration) (bool, error) {
	mine, err := on(ctx, c, func(k *control) (bool, error) {
		// Only looking while somebody has it, see free.
		info, err := k.io.ListLockers(indexObject, turnLock)
		if err != nil && !is(err, enoent) {
			return false, err
		}
		if err == nil && info.NumLockers > 0 {
			return false, nil
		}
		result, err := k.io.LockExclusive(indexObject, turnLock, c.opts.Owner+"/"+rand.Text(), "", every, nil)

		return err == nil && result == 0, err
	}, nil)

	return mine, classify("ask for the turn to look for orphans", err)
}

// Locks lists the volumes whose lock object is there although nobody has the lock: what a killed worker leaves when
// nobody adopts its job. With ids only these are looked at, one operation each. Without, the whole namespace is listed,
// which costs the OSDs a walk over the journal's pool.
func (c *Cluster) Locks(ctx context.Context, volumeIDs []string) ([]string, error) {
	list, err := on(ctx, c, func(k *control) ([]string, error) {
		if volumeIDs == nil {
			err := k.io.ListObjects(func(name string) {
				if id, ok := strings.CutPrefix(name, volumePrefix); ok {
					volumeIDs = append(volumeIDs, id)
				}
			})
			if err != nil {
				return nil, err
			}
		}

		return k.unlocked(ctx, volumeIDs)
	}, nil)

	return list, classify("look for locks that were left", err)
}

func (k *control) unlocked(ctx context.Context, volumeIDs []string) ([]string, error) {
	var list []string
	for _, id := range volumeIDs {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if _, err := k.io.Stat(volumePrefix + id); is(err, enoent) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("look at %s: %w", volumePrefix+id, err)
		}
		info, err := k.io.ListLockers(volumePrefix+id, lockName)
		if err != nil && !is(err, enoent) {
			return nil, fmt.Errorf("look at the lock %s: %w", volumePrefix+id, err)
		}
		if err == nil && info.NumLockers == 0 {
			list = append(list, id)
		}
	}

	return list, nil
}

// RemoveLock removes a volume's lock object unless somebody has taken the lock since; that is Retry. Idempotent.
func (c *Cluster) RemoveLock(ctx context.Context, volumeID string) error {
	op := "remove the lock of volume " + volumeID

	return classify(op, onErr(ctx, c, func(k *control) error {
		own, err := k.versioned()
		if err != nil {
			return err
		}
		defer own.Destroy()
		err = removeUnlocked(own, volumePrefix+volumeID)
		if is(err, erange, eoverflow) {
			return refuse(op, worker.ReasonConflict, worker.Retry, "somebody has just taken it")
		}

		return err
	}))
}

// removeUnlocked asserts the version from before the look, so whoever locks in between keeps the object. A lock that is
// held is no error: nothing is removed.
func removeUnlocked(own *rados.IOContext, object string) error {
	_, err := own.Stat(object)
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
	info, err := own.ListLockers(object, lockName)
	if err != nil || info.NumLockers > 0 {
		return err
	}
	op := rados.CreateWriteOp()
	defer op.Release()
	op.AssertVersion(version)
	op.Remove()
	err = op.Operate(own, object, rados.OperationNoFlag)
	if is(err, enoent) {
		return nil
	}

	return err
}
