// Package cindertest is the part of Cinder's REST API that cinderlift uses, in memory, for tests. It behaves as cinder
// ab09bc3 does towards an admin. Tokens and faults are the business of keystonetest, under which it is mounted.
package cindertest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// Volume is a volume as the database has it.
type Volume struct {
	ID, NameID, Status, Host, Cluster, Project, TypeID string
	Size                                               int64
	Attachments                                        int    // completed
	Reserved                                           int    // attachments that are not
	Updated                                            string // updated_at
	Encrypted                                          bool
}

// Type is a volume type.
type Type struct {
	ID, Name string
	Specs    map[string]string
}

// Server is the fake. The zero value has nothing, and the newest microversion 3.0.
type Server struct {
	Minor  int               // newest microversion 3.x
	Pools  map[string]string // location_info by host@backend#pool
	Hidden bool              // the policies of an ordinary user

	// Before is called before every request with the lock held, for races: it may change v, the volume concerned.
	Before func(r *http.Request, v *Volume)

	mu      sync.Mutex
	volumes map[string]*Volume
	types   []Type
	resets  []string
}

// Put makes or replaces a volume.
func (s *Server) Put(v Volume) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.volumes == nil {
		s.volumes = map[string]*Volume{}
	}
	s.volumes[v.ID] = &v
}

// PutType makes a type.
func (s *Server) PutType(t Type) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.types = append(s.types, t)
}

// Remove deletes a volume.
func (s *Server) Remove(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.volumes, id)
}

// Status is the volume's; "" when it is gone.
func (s *Server) Status(id string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.volumes[id]; v != nil {
		return v.Status
	}

	return ""
}

// Resets are the statuses that were set so far.
func (s *Server) Resets() []string {
	s.mu.Lock()
	defer s.mu.Unlock()

	return append([]string(nil), s.resets...)
}

// ServeHTTP is http.Handler's. The path begins with /v3/{project}.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	part := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	minor, ok := s.negotiate(r)
	if len(part) < 3 || part[0] != "v3" || !ok {
		code := http.StatusNotFound
		if !ok {
			code = http.StatusNotAcceptable
		}
		w.WriteHeader(code)

		return
	}
	switch what := r.Method + " " + part[2]; {
	case what == "GET attachments" && minor >= 27:
		s.listAttachments(w, r)
	case what == "GET types":
		s.listTypes(w, r)
	case what == "GET scheduler-stats" && s.Hidden:
		w.WriteHeader(http.StatusForbidden)
	case what == "GET scheduler-stats":
		s.listPools(w)
	case part[2] == "volumes" && len(part) > 3:
		s.volume(w, r, part[3], minor)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func (s *Server) negotiate(r *http.Request) (int, bool) {
	_, v, found := strings.Cut(r.Header.Get("Openstack-Api-Version"), "volume 3.")
	minor, err := strconv.Atoi(v)
	if !found {
		return 0, true
	}

	return minor, err == nil && minor <= s.Minor
}

func (s *Server) volume(w http.ResponseWriter, r *http.Request, id string, minor int) {
	v := s.volumes[id]
	if v != nil && s.Before != nil {
		s.Before(r, v)
	}
	switch {
	case v == nil:
		w.WriteHeader(http.StatusNotFound)
	case r.Method == http.MethodPost:
		s.action(w, r, v)
	default:
		answer(w, http.StatusOK, map[string]any{"volume": s.show(v, minor)})
	}
}

func (s *Server) show(v *Volume, minor int) map[string]any {
	attachments := []map[string]string{}
	for i := range v.Attachments {
		attachments = append(attachments, map[string]string{"attachment_id": fmt.Sprint(i), "volume_id": v.ID})
	}
	m := map[string]any{
		"id": v.ID, "status": v.Status, "size": v.Size, "encrypted": v.Encrypted, "attachments": attachments,
		"updated_at": orNull(v.Updated), "volume_type": s.typeName(v.TypeID), "name": "of the user", "metadata": map[string]string{},
	}
	if minor >= 61 && !s.Hidden {
		m["cluster_name"] = orNull(v.Cluster)
	}
	if minor >= 63 {
		m["volume_type_id"] = orNull(v.TypeID)
	}
	if !s.Hidden {
		m["os-vol-host-attr:host"] = orNull(v.Host)
		m["os-vol-tenant-attr:tenant_id"] = v.Project
		m["os-vol-mig-status-attr:name_id"] = orNull(v.NameID)
	}

	return m
}

func (s *Server) typeName(id string) any {
	for _, t := range s.types {
		if t.ID == id {
			return t.Name
		}
	}

	return orNull(id)
}

func orNull(s string) any {
	if s == "" {
		return nil
	}

	return s
}

// action is os-reset_status: no expected status, 400 for in-use without attachments (cinder ab09bc3
// api/contrib/admin_actions.py:56-125).
func (s *Server) action(w http.ResponseWriter, r *http.Request, v *Volume) {
	var body map[string]map[string]string
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil || len(body["os-reset_status"]) != 1 {
		w.WriteHeader(http.StatusBadRequest)

		return
	}
	status := body["os-reset_status"]["status"]
	switch {
	case s.Hidden:
		w.WriteHeader(http.StatusForbidden)
	case status == "" || status == "in-use" && v.Attachments+v.Reserved == 0:
		w.WriteHeader(http.StatusBadRequest)
	default:
		v.Status = status
		s.resets = append(s.resets, status)
		w.WriteHeader(http.StatusAccepted)
	}
}

// listAttachments has those of all states (cinder ab09bc3 api/v3/attachments.py:100-130).
func (s *Server) listAttachments(w http.ResponseWriter, r *http.Request) {
	l := []map[string]any{}
	for id, v := range s.volumes {
		if want := r.URL.Query().Get("volume_id"); want != "" && want != id || r.URL.Query().Get("all_tenants") != "1" {
			continue
		}
		for i := range v.Attachments + v.Reserved {
			l = append(l, map[string]any{"id": fmt.Sprint(i), "volume_id": id, "status": "reserved"})
		}
	}
	answer(w, http.StatusOK, map[string]any{"attachments": l})
}

func (s *Server) listTypes(w http.ResponseWriter, r *http.Request) {
	l := []map[string]any{}
	if r.URL.Query().Get("is_public") == "None" {
		for _, t := range s.types {
			l = append(l, map[string]any{"id": t.ID, "name": t.Name, "extra_specs": t.Specs})
		}
	}
	answer(w, http.StatusOK, map[string]any{"volume_types": l})
}

func (s *Server) listPools(w http.ResponseWriter) {
	l := []map[string]any{}
	for name, info := range s.Pools {
		l = append(l, map[string]any{"name": name, "capabilities": map[string]any{"location_info": info, "multiattach": true}})
	}
	answer(w, http.StatusOK, map[string]any{"pools": l})
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v)
}
