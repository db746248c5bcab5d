// Package metrics is the Prometheus side of a worker: it implements worker.Recorder and counts what the adapters tell it
// through callbacks.
//
// Every series exists at zero from the start, so that an alert on absence or on a rate works before the first event.
// Labels come from closed sets; no id of a project, volume, image or request is ever a label.
package metrics
