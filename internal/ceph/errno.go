package ceph

import "syscall"

// The errnos that are decided on, by the names that Ceph's source uses.
const (
	enoent    = syscall.ENOENT
	eexist    = syscall.EEXIST
	ebusy     = syscall.EBUSY
	einval    = syscall.EINVAL
	eperm     = syscall.EPERM
	eacces    = syscall.EACCES
	erange    = syscall.ERANGE
	eoverflow = syscall.EOVERFLOW
	eshutdown = syscall.ESHUTDOWN
	estale    = syscall.ESTALE
	enotsup   = syscall.EOPNOTSUPP
	ecanceled = syscall.ECANCELED
	etimedout = syscall.ETIMEDOUT
)
