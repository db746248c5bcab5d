package keystone

import (
	"crypto/tls"
	"errors"
	"fmt"

	"github.com/gophercloud/gophercloud/v2/openstack/config/clouds"
)

// fromCloud replaces the credentials by those of an entry of clouds.yaml, with secure.yaml beside it. Region, Interface
// and CAFile come before the entry's. gophercloud looks at OS_CACERT, OS_CERT and OS_KEY where the entry has no such
// file; everything else of the environment is overridden.
func (o Options) fromCloud() (Options, *tls.Config, error) {
	a, e, t, err := clouds.Parse(clouds.WithCloudName(o.Cloud), clouds.WithLocations(o.CloudFiles...),
		clouds.WithRegion(o.Region), clouds.WithEndpointType(o.Interface))
	switch {
	case err != nil:
		return o, nil, fmt.Errorf("read cloud %q of clouds.yaml: %w", o.Cloud, err)
	case t.InsecureSkipVerify:
		return o, nil, fmt.Errorf("cloud %q of clouds.yaml has verify: false, which is not supported; name the CA by cacert", o.Cloud)
	case a.TokenID != "":
		return o, nil, fmt.Errorf("cloud %q of clouds.yaml has a token, which can't be renewed; give a password", o.Cloud)
	case a.Scope != nil && (a.Scope.System || a.Scope.TrustID != ""):
		return o, nil, errors.New("system scope and trusts are not supported")
	}
	o.AuthURL, o.Username, o.UserID, o.Password = a.IdentityEndpoint, a.Username, a.UserID, Secret(a.Password)
	o.UserDomainID, o.UserDomainName = a.DomainID, a.DomainName
	o.ApplicationCredentialID, o.ApplicationCredentialName = a.ApplicationCredentialID, a.ApplicationCredentialName
	o.ApplicationCredentialSecret = Secret(a.ApplicationCredentialSecret)
	if a.Scope != nil {
		o.ProjectID, o.ProjectName = a.Scope.ProjectID, a.Scope.ProjectName
		o.ProjectDomainID, o.ProjectDomainName = a.Scope.DomainID, a.Scope.DomainName
	}
	o.Region, o.Interface = e.Region, string(e.Availability)
	t.MinVersion = tls.VersionTLS12

	return o, t, nil
}
