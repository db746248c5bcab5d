package keystone

import "context"

type requestIDKey struct{}

// WithRequestID makes every request under the context bear id as X-OpenStack-Request-ID, the global request id by which
// operators follow one upload through the logs of all services. An id that Glance would refuse (longer than 64 bytes, or
// other characters than letters, digits and -) is left out.
func WithRequestID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestIDKey{}, id)
}

func requestID(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey{}).(string)
	if len(id) > 64 {
		return ""
	}
	for _, c := range id {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' {
			return ""
		}
	}

	return id
}
