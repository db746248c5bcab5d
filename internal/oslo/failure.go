package oslo

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// dispatcherModule is where oslo.messaging defines the errors of its dispatcher.
// No caller allows it, so both arrive as RemoteError, as from a Python server.
const dispatcherModule = "oslo_messaging.rpc.dispatcher"

// Failure is an exception for the Python caller: it builds Class(*Args, **Kwargs) of
// Module if it allows that module, and raises RemoteError otherwise
// (oslo.messaging 8ea2d5b _drivers/common.py:201-250).
type Failure struct {
	Class   string
	Module  string
	Message string
	Args    []any
	Kwargs  map[string]any
}

func (f *Failure) Error() string { return f.Class + ": " + f.Message }

// UnsupportedVersion is the failure of a request for a version that is not served.
func UnsupportedVersion(version, method string) *Failure {
	return dispatcherFailure("UnsupportedVersion",
		fmt.Sprintf("Endpoint does not support RPC version %s. Attempted method: %s", version, method))
}

// NoSuchMethod is the failure of a request for a method that is not served.
func NoSuchMethod(method string) *Failure {
	return dispatcherFailure("NoSuchMethod", "Endpoint does not support RPC method "+method)
}

// RemoteFailure is a failure that every caller sees as RemoteError.
func RemoteFailure(class, message string) *Failure {
	return dispatcherFailure(class, message)
}

func dispatcherFailure(class, message string) *Failure {
	return &Failure{Class: class, Module: dispatcherModule, Message: message, Args: []any{message}}
}

// CinderException is a class of cinder.exception, the one module Cinder allows
// (cinder ab09bc3 cinder/rpc.py:52-60). Cinder formats the text from kwargs, so they
// must name the fields of the class's template, as image_id for ImageNotFound.
func CinderException(class, message string, kwargs map[string]any) *Failure {
	return &Failure{Class: class, Module: "cinder.exception", Message: message, Kwargs: kwargs}
}

// encode writes the JSON that travels as a string inside the reply. tb must be a list:
// the caller joins it (_drivers/common.py:201-250).
func (f *Failure) encode() ([]byte, error) {
	args, kwargs := f.Args, f.Kwargs
	if args == nil {
		args = []any{}
	}
	if kwargs == nil {
		kwargs = map[string]any{}
	}
	return marshalMembers([]member{
		{"class", f.Class}, {"module", f.Module}, {"message", f.Message},
		{"tb", []string{}}, {"args", args}, {"kwargs", kwargs},
	})
}

// Compatible reports whether a server of version have serves a request of version
// want: same major, and (minor, revision) not above ours
// (oslo.messaging 8ea2d5b _utils.py:39-69). What is no version is not compatible.
func Compatible(have, want string) bool {
	h, ok := parseVersion(have)
	if !ok {
		return false
	}
	w, ok := parseVersion(want)
	if !ok {
		return false
	}
	return h[0] == w[0] && slices.Compare(w[1:], h[1:]) <= 0
}

// parseVersion reads M.m or M.m.r.
func parseVersion(s string) (v []int, ok bool) {
	parts := strings.Split(s, ".")
	if len(parts) != 2 && len(parts) != 3 {
		return nil, false
	}
	v = make([]int, 3)
	for i, part := range parts {
		n, err := strconv.Atoi(part)
		if err != nil || n < 0 {
			return nil, false
		}
		v[i] = n
	}
	return v, true
}

// Target is what a server offers: the methods of one namespace in one version.
type Target struct {
	Namespace string // empty: the null namespace
	Version   string
	Methods   []string
}

// Refuse returns nil if t serves r, else the failure that a Python server would
// answer. The version is looked at first (rpc/dispatcher.py:267-320).
func (t Target) Refuse(r Request) *Failure {
	if r.Namespace != t.Namespace || !Compatible(t.Version, r.Version) {
		return UnsupportedVersion(r.Version, r.Method)
	}
	if !slices.Contains(t.Methods, r.Method) {
		return NoSuchMethod(r.Method)
	}
	return nil
}

// isPing recognises the health probe that oslo servers answer with "pong" when
// rpc_ping_enabled is set (rpc/dispatcher.py:56-58, 193-201).
func (r Request) isPing() bool {
	return r.Method == "oslo_rpc_server_ping" && r.Namespace == "" && Compatible("1.0", r.Version)
}
