package glancetest

import (
	"crypto/md5" //nolint:gosec // Glance's checksum
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
)

// upload is image_data.py's upload (glance c76abb08e api/v2/image_data.py:108-300).
func (s *Server) upload(w http.ResponseWriter, r *http.Request, id string) {
	store, code := s.begin(r, id)
	if code != 0 {
		refuse(w, code)

		return
	}
	b, err := io.ReadAll(r.Body)
	if s.Uploading != nil {
		s.Uploading(id)
	}
	if want, bad := strconv.ParseInt(r.Header.Get("X-Openstack-Image-Size"), 10, 64); bad == nil && want != int64(len(b)) {
		err = io.ErrUnexpectedEOF
	}
	if code := s.end(id, store, b, err); code != http.StatusNoContent {
		refuse(w, code)

		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// begin takes an upload on; a code other than 0 refuses it.
func (s *Server) begin(r *http.Request, id string) (store string, code int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	store, known := s.pick(r.Header.Get("X-Image-Meta-Store"))
	i := s.images[id]
	switch {
	case !known:
		return "", http.StatusBadRequest
	case i == nil:
		return "", http.StatusNotFound
	case i.Status != "queued":
		return "", http.StatusConflict
	case r.ContentLength < 0:
		s.notes = append(s.notes, "chunked")
	}
	i.Status = "saving"

	return store, 0
}

func (s *Server) pick(wanted string) (string, bool) {
	if len(s.Config.Stores) == 0 {
		return "", true // without multistore the header is ignored
	}
	for _, st := range s.Config.Stores {
		if st.ID == wanted || wanted == "" && st.Default {
			return st.ID, true
		}
	}

	return "", false
}

func (s *Server) end(id, store string, b []byte, err error) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.images[id]
	switch {
	case i == nil:
		return http.StatusGone
	case err != nil:
		i.Status = "queued"

		return http.StatusBadRequest
	}
	sum := md5.Sum(b) //nolint:gosec // theirs
	h := newHash(s.Config.HashAlgorithm)
	_, _ = h.Write(b)
	i.Status, i.Size, i.Store, i.Data = "active", int64(len(b)), store, b
	i.Location = "rbd://uploaded/" + id
	i.Checksum, i.HashAlgo, i.HashValue = hex.EncodeToString(sum[:]), s.Config.HashAlgorithm, hex.EncodeToString(h.Sum(nil))
	s.notes = append(s.notes, fmt.Sprintf("upload %d bytes", len(b)))

	return http.StatusNoContent
}

func newHash(name string) hash.Hash {
	switch name {
	case "sha256":
		return sha256.New()
	case "sha1":
		return sha1.New() //nolint:gosec // theirs
	default:
		return sha512.New()
	}
}
