package keystone

import (
	"net/http"

	"github.com/cinderlift/cinderlift/worker"
)

// Service is one of the services that cinderlift calls.
type Service int

// The services. Their paths begin below the root of Glance's URL (so with /v2, or /versions) and below the project's
// URL of Cinder's v3 API.
const (
	Image Service = iota + 1
	Volume
)

// String is the service's type as OpenStack names it; the metric label.
func (s Service) String() string {
	switch s {
	case Image:
		return "image"
	case Volume:
		return "volume"
	default:
		return "identity"
	}
}

// types are the service types under which catalogs list it, the preferred one first.
func (s Service) types() []string {
	if s == Volume {
		return []string{"volumev3", "block-storage", "volume"}
	}

	return []string{"image"}
}

func (s Service) name() string {
	if s == Volume {
		return "Cinder"
	}

	return "Glance"
}

func (s Service) unavailable() worker.Reason {
	if s == Volume {
		return worker.ReasonCinderUnavailable
	}

	return worker.ReasonGlanceUnavailable
}

func (s Service) refused() worker.Reason {
	if s == Volume {
		return worker.ReasonCinderRefused
	}

	return worker.ReasonGlanceRefused
}

func (s Service) missing() worker.Reason {
	if s == Volume {
		return worker.ReasonVolumeMissing
	}

	return worker.ReasonImageMissing
}

func (s Service) state() worker.Reason {
	if s == Volume {
		return worker.ReasonVolumeState
	}

	return worker.ReasonImageState
}

// verdict is the meaning of a status code that is not 2xx. genuine says that the service itself answered, and not a
// proxy before it: only then can a 404 or 410 mean that the image or volume is gone.
func (s Service) verdict(code int, genuine bool) (worker.Reason, worker.Advice) {
	switch {
	case code >= 500, code == http.StatusRequestTimeout, code == http.StatusTooEarly, code == http.StatusTooManyRequests:
		return s.unavailable(), worker.Retry
	case code < 400, code == http.StatusUnauthorized, code == http.StatusProxyAuthRequired:
		return s.refused(), worker.Retry
	case gone(code) && !genuine:
		return s.unavailable(), worker.Retry
	case gone(code):
		return s.missing(), worker.GiveUp
	case code == http.StatusConflict:
		return s.state(), worker.Retry
	default:
		return s.refused(), worker.GiveUp
	}
}

func gone(code int) bool { return code == http.StatusNotFound || code == http.StatusGone }
