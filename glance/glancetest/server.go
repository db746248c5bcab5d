package glancetest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
)

// Image is an image as the database has it.
type Image struct {
	ID, Status, Owner string
	Size              int64
	Checksum          string // MD5; "" is null
	HashAlgo          string
	HashValue         string
	Store             string
	Location          string
	Task              string // the lock os_glance_import_task
	looks             int    // of the task's time that is left
	pending           string // location that the task will add
	Data              []byte // what was uploaded
}

// Data is what a location leads to.
type Data struct {
	Size       int64
	Unreadable bool // Glance's Ceph user may not open it
}

// Store is a store of stores/detail.
type Store struct {
	ID, Type, FSID, Pool string
	Default              bool
}

// Config is the generation and the configuration. The zero value is Glance 25 with show_multiple_locations off.
type Config struct {
	Minor             int  // newest API version 2.x; 17 and above have the location API
	MultipleLocations bool // show_multiple_locations
	NoService         bool // the caller's tokens lack the role service
	StrictService     bool // service_token_roles_required: such a service token is a 401
	HideLocations     bool // the policy fetch_image_location is closed to us
	TaskLooks         int  // GETs of an image until a task on it is done
	SecureHash        bool // do_secure_hash: a task computes the digests
	HashAlgorithm     string
	Stores            []Store // enabled_backends; none: one store without a name
	NoDeactivate      bool    // the policy deactivate is closed to us
	NoFSID            bool    // stores/detail does not tell the fsid of RBD stores, as before 30.0.0
	StoresCode        int     // what stores/detail answers; 0 is 200, or 404 without Stores
}

// Server is the fake.
type Server struct {
	Config Config

	// Uploading is called when an upload's data was received, before the image becomes active; nil does nothing.
	Uploading func(id string)

	mu     sync.Mutex
	images map[string]*Image
	data   map[string]Data
	notes  []string
}

// New makes a fake without images.
func New(c Config) *Server {
	if c.HashAlgorithm == "" {
		c.HashAlgorithm = "sha512"
	}

	return &Server{Config: c, images: map[string]*Image{}, data: map[string]Data{}}
}

// Put makes or replaces an image.
func (s *Server) Put(i Image) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images[i.ID] = &i
}

// PutData puts an RBD image behind a location.
func (s *Server) PutData(location string, d Data) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.data[location] = d
}

// Image is the image as it is now; false when it is gone.
func (s *Server) Image(id string) (Image, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := s.images[id]; i != nil {
		return *i, true
	}

	return Image{}, false
}

// Remove deletes an image, as its user may at any time.
func (s *Server) Remove(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.images, id)
}

// Notes are the writes that were carried out, in order.
func (s *Server) Notes() []string {
	s.mu.Lock()
	defer s.mu.Unlock()

	return append([]string(nil), s.notes...)
}

// ServeHTTP is http.Handler's.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	part := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch path := r.Method + " " + r.URL.Path; {
	case path == "GET /versions":
		s.versions(w)
	case path == "GET /v2/schemas/image":
		answer(w, http.StatusOK, map[string]string{"name": "image"})
	case path == "GET /v2/info/stores/detail":
		s.stores(w)
	case len(part) == 3 && part[1] == "images":
		s.image(w, r, part[2])
	case len(part) == 4 && part[3] == "locations" && s.Config.Minor >= 17:
		s.locations(w, r, part[2])
	case len(part) == 5 && part[3] == "actions" && part[4] == "deactivate" && r.Method == http.MethodPost:
		s.deactivate(w, part[2])
	case len(part) == 4 && part[3] == "file" && r.Method == http.MethodPut:
		s.upload(w, r, part[2])
	default:
		refuse(w, http.StatusNotFound)
	}
}

func (s *Server) versions(w http.ResponseWriter) {
	l := []map[string]string{}
	for i := s.Config.Minor; i >= 0; i-- {
		l = append(l, map[string]string{"id": fmt.Sprintf("v2.%d", i), "status": "SUPPORTED"})
	}
	answer(w, http.StatusOK, map[string]any{"versions": l})
}

func (s *Server) stores(w http.ResponseWriter) {
	code := s.Config.StoresCode
	if code == 0 && len(s.Config.Stores) == 0 {
		code = http.StatusNotFound
	}
	if code != 0 {
		refuse(w, code)

		return
	}
	l := []map[string]any{}
	for _, st := range s.Config.Stores {
		m := map[string]any{"id": st.ID, "type": st.Type, "weight": 0, "properties": map[string]any{}}
		if st.Type == "rbd" {
			p := map[string]any{"pool": st.Pool, "chunk_size": 8 << 20, "thin_provisioning": false}
			if !s.Config.NoFSID {
				p["fsid"] = orNull(st.FSID)
			}
			m["properties"] = p
		}
		if st.Default {
			m["default"] = "true"
		}
		l = append(l, m)
	}
	answer(w, http.StatusOK, map[string]any{"stores": l})
}

func (s *Server) image(w http.ResponseWriter, r *http.Request, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.images[id]
	switch {
	case i == nil:
		refuse(w, http.StatusNotFound)
	case r.Method == http.MethodGet:
		s.work(i)
		answer(w, http.StatusOK, s.show(i))
	case r.Method == http.MethodDelete:
		s.notes = append(s.notes, "delete "+i.Status)
		delete(s.images, id)
		w.WriteHeader(http.StatusNoContent)
	case r.Method == http.MethodPatch:
		s.patch(w, r, i)
	default:
		refuse(w, http.StatusMethodNotAllowed)
	}
}

// deactivate is glance c76abb08e api/v2/image_actions.py: 204 also for an image that is deactivated already, 400 for one in
// any other state (domain/__init__.py, Image.deactivate).
func (s *Server) deactivate(w http.ResponseWriter, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.images[id]
	switch {
	case i == nil:
		refuse(w, http.StatusNotFound)
	case s.Config.NoDeactivate:
		refuse(w, http.StatusForbidden)
	case i.Status == "active":
		i.Status = "deactivated"
		s.notes = append(s.notes, "deactivate")
		w.WriteHeader(http.StatusNoContent)
	case i.Status == "deactivated":
		w.WriteHeader(http.StatusNoContent)
	default:
		refuse(w, http.StatusBadRequest)
	}
}

func orNull(s string) any {
	if s == "" {
		return nil
	}

	return s
}

func (s *Server) show(i *Image) map[string]any {
	m := map[string]any{
		"id": i.ID, "status": i.Status, "owner": i.Owner, "disk_format": "raw", "container_format": "bare", "size": nil,
		"virtual_size": nil, "checksum": orNull(i.Checksum), "os_hash_algo": orNull(i.HashAlgo),
		"os_hash_value": orNull(i.HashValue), "protected": false,
	}
	if i.Status == "active" || i.Status == "deactivated" {
		m["size"] = i.Size
		if len(s.Config.Stores) > 0 {
			m["stores"] = i.Store
		}
	}
	if i.Task != "" {
		m["os_glance_import_task"] = i.Task
	}
	if s.Config.MultipleLocations {
		m["locations"] = s.locationList(i)
	}

	return m
}

func (s *Server) locationList(i *Image) []map[string]any {
	l := []map[string]any{}
	if i.Location != "" {
		l = append(l, map[string]any{"url": i.Location, "metadata": map[string]string{"store": i.Store}})
	}

	return l
}

// patch is _do_add_locations (glance c76abb08e api/v2/images.py:1077-1109); 500 for a parent that Glance may not read and
// 400 for a missing image were measured.
func (s *Server) patch(w http.ResponseWriter, r *http.Request, i *Image) {
	var ops []struct {
		Op, Path string
		Value    struct {
			URL      string
			Metadata map[string]string
		}
	}
	err := json.NewDecoder(r.Body).Decode(&ops)
	d, ok := Data{}, false
	if len(ops) == 1 {
		d, ok = s.data[ops[0].Value.URL]
	}
	switch {
	case r.Header.Get("Content-Type") != "application/openstack-images-v2.1-json-patch":
		refuse(w, http.StatusUnsupportedMediaType)
	case err != nil || len(ops) != 1 || ops[0].Op != "add" || ops[0].Path != "/locations/-" || ops[0].Value.Metadata == nil:
		refuse(w, http.StatusBadRequest)
	case !s.Config.MultipleLocations:
		refuse(w, http.StatusForbidden)
	case i.Status != "queued" && i.Status != "active":
		refuse(w, http.StatusConflict)
	case !ok || i.Location == ops[0].Value.URL:
		refuse(w, http.StatusBadRequest)
	case d.Unreadable:
		refuse(w, http.StatusInternalServerError)
	default:
		s.activate(i, ops[0].Value.URL)
		answer(w, http.StatusOK, s.show(i))
	}
}

func (s *Server) activate(i *Image, location string) {
	d := s.data[location]
	i.Status, i.Location, i.Size, i.Store = "active", location, d.Size, s.storeOf(location)
	s.notes = append(s.notes, "activate "+location)
}

func (s *Server) storeOf(location string) string {
	for _, st := range s.Config.Stores {
		if strings.HasPrefix(location, "rbd://"+st.FSID+"/"+st.Pool+"/") {
			return st.ID
		}
	}

	return ""
}

// locations is the location API (glance c76abb08e api/v2/images.py:1141-1245).
func (s *Server) locations(w http.ResponseWriter, r *http.Request, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.images[id]
	var body struct {
		URL string `json:"url"`
	}
	sent := r.Header.Get("X-Service-Token") != ""
	service := sent && !s.Config.NoService
	switch {
	case sent && !service && s.Config.StrictService:
		refuse(w, http.StatusUnauthorized)
	case i == nil:
		refuse(w, http.StatusNotFound)
	case r.Method == http.MethodGet && (s.Config.HideLocations || !service):
		refuse(w, http.StatusForbidden)
	case r.Method == http.MethodGet:
		answer(w, http.StatusOK, s.locationList(i))
	case json.NewDecoder(r.Body).Decode(&body) != nil || body.URL == "":
		refuse(w, http.StatusBadRequest)
	case i.Status != "queued":
		refuse(w, http.StatusConflict)
	case !service:
		refuse(w, http.StatusForbidden)
	case i.Task != "":
		refuse(w, http.StatusConflict)
	default:
		i.Task, i.pending, i.looks = "task", body.URL, s.Config.TaskLooks
		w.WriteHeader(http.StatusAccepted)
	}
}

// work lets a task's time pass. Its end drops the lock in any case (async_/flows/location_import.py).
func (s *Server) work(i *Image) {
	if i.pending == "" {
		return
	}
	if i.looks--; i.looks >= 0 {
		return
	}
	location := i.pending
	i.Task, i.pending = "", ""
	if d, ok := s.data[location]; !ok || d.Unreadable {
		s.notes = append(s.notes, "revert "+location)

		return
	}
	s.activate(i, location)
	if s.Config.SecureHash {
		i.Checksum, i.HashAlgo, i.HashValue = "00", s.Config.HashAlgorithm, "00"
	}
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, code int) {
	w.Header().Set("Content-Type", "text/html")
	w.WriteHeader(code)
	_, _ = fmt.Fprintf(w, "<html><head><title>%d %s</title></head><body>text that nobody may rely on</body></html>", code,
		http.StatusText(code))
}
