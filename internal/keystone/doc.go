// Package keystone is one authenticated session that Glance's and Cinder's clients share.
//
// # Words
//
// A [Session] holds one token and the service catalog that came with it. A [Request] is one call of one [Service]; an
// [Answer] is what the service said, read to its end.
//
// # Guarantees
//
//   - A 401 renews the token once and sends the request once more, with its whole body: gophercloud sends a body again
//     without rewinding it unless it is an io.Seeker (gophercloud v2.15.0 provider_client.go:503-509), so authentication
//     is all that is taken from there.
//   - However many requests meet the 401, one of them renews. The catalog is taken over from the new token as well.
//   - A request ends: connecting, TLS and the answer have their time limits, and so has a service that takes no more of
//     a body. Time that the source of a body needs is not counted against the service.
//   - After Do has returned, nothing reads from the request's body any more.
//   - No redirect is followed, because the token would go along. Answers above 4 MiB are errors. HTTP/1.1 only, so that
//     every upload has a connection of its own.
//   - Token, password and secrets are in no error and in no text of this package; a service that sends the token back
//     has it blotted out.
//
// # Failures
//
// Every error is a [*worker.Error]. It blames the service that was to be asked also when it was Keystone that did not
// answer: the reasons know no Keystone, and Keystone is named in the text. A refused password or a redirect is [worker.Retry]:
// it is the cloud's configuration, not the job, that has to be mended. Nothing here retries besides the one 401.
//
// # Not supported
//
// Keystone v2, system scope, trusts, OAuth, EC2 and federated log-in, multi-factor, tokens given instead of a
// password, certificates that nobody signed and no CA file names, client certificates outside of clouds.yaml, Cinder's
// v2 API. The expiry of a token is judged by this machine's clock.
package keystone
