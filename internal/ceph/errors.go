package ceph

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/cinderlift/cinderlift/worker"
)

// verdict is what an errno means for a job.
type verdict struct {
	reason worker.Reason
	advice worker.Advice
	hint   string // for the operator: what to do
}

// verdictOf knows the errnos of reliability experiments E7, E9 and E10: a fenced client gets ESHUTDOWN, a full pool
// ENOSPC or EDQUOT (only with the full-try flag, otherwise the operation hangs), an operation timeout ETIMEDOUT.
func verdictOf(e syscall.Errno) verdict {
	switch e {
	case syscall.ESHUTDOWN:
		return verdict{worker.ReasonLeaseLost, worker.StandBy, "this connection was fenced"}
	case syscall.ENOSPC, syscall.EDQUOT:
		return verdict{worker.ReasonPoolFull, worker.Retry, "the pool is full or at its quota; make room there"}
	case syscall.ETIMEDOUT, syscall.ENOTCONN, syscall.EAGAIN, syscall.EIO, syscall.EINTR:
		return verdict{worker.ReasonCephUnavailable, worker.Retry, "Ceph did not answer in time; look at its health"}
	case syscall.EBUSY, syscall.EROFS, syscall.ECANCELED, syscall.EEXIST:
		return verdict{worker.ReasonCephRefused, worker.Retry, "somebody else is using the image"}
	case syscall.EPERM, syscall.EACCES:
		return verdict{worker.ReasonCephRefused, worker.OtherWay, "the caps of cinderlift's key do not allow it"}
	case syscall.EINVAL, syscall.EOPNOTSUPP, syscall.ENOSYS, syscall.EDOM:
		return verdict{worker.ReasonCephRefused, worker.OtherWay, "this Ceph can't do it"}
	case syscall.ENOENT:
		return verdict{worker.ReasonCephRefused, worker.OtherWay, "a pool or an image is not there"}
	default:
		return verdict{worker.ReasonCephUnavailable, worker.Retry, "unexpected answer of Ceph"}
	}
}

// classify makes err a *worker.Error; nil stays nil, and what is classified already stays as it is.
func classify(op string, err error) error {
	var done *worker.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &done):
		return err
	case errors.Is(err, worker.ErrLeaseLost):
		return &worker.Error{Op: op, Reason: worker.ReasonLeaseLost, Advice: worker.StandBy, Err: err}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, worker.ErrStopping):
		return &worker.Error{Op: op, Reason: worker.ReasonStopping, Advice: worker.Retry, Err: err}
	}
	e, ok := errnoOf(err)
	if !ok {
		return &worker.Error{Op: op, Reason: worker.ReasonInternal, Advice: worker.GiveUp, Err: err}
	}
	v := verdictOf(e)

	return &worker.Error{Op: op, Reason: v.reason, Advice: v.advice, Err: fmt.Errorf("%s: %w", v.hint, err)}
}

// refuse is an error that no errno stands for.
func refuse(op string, r worker.Reason, a worker.Advice, format string, args ...any) error {
	return &worker.Error{Op: op, Reason: r, Advice: a, Err: fmt.Errorf(format, args...)}
}

// errnoOf finds the errno in an error of go-ceph or of the shim.
func errnoOf(err error) (syscall.Errno, bool) {
	var coded interface{ ErrorCode() int }
	var plain syscall.Errno
	switch {
	case errors.As(err, &coded):
		return syscall.Errno(abs(coded.ErrorCode())), true
	case errors.As(err, &plain):
		return plain, true
	default:
		return 0, false
	}
}

// is reports whether err carries one of the errnos.
func is(err error, errnos ...syscall.Errno) bool {
	got, ok := errnoOf(err)
	for _, e := range errnos {
		if ok && got == e {
			return true
		}
	}

	return false
}

func abs(n int) int { return max(n, -n) }
