package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// complete is the smallest environment that works.
func complete() map[string]string {
	return map[string]string{
		"CINDERLIFT_TRANSPORT_URL": "rabbit://user:canary@host:5672/",
		"OS_AUTH_URL":              "http://keystone:5000/v3", "OS_USERNAME": "cinderlift", "OS_PASSWORD": "canary",
		"OS_PROJECT_NAME": "service",
	}
}

// environment makes exactly these variables of ours visible.
func environment(t *testing.T, env map[string]string) {
	t.Helper()
	for _, kv := range os.Environ() {
		name, old, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, "CINDERLIFT_") || strings.HasPrefix(name, "OS_") {
			t.Setenv(name, old) // so that it comes back
			os.Unsetenv(name)
		}
	}
	for name, v := range env {
		t.Setenv(name, v)
	}
}

// TestBadConfiguration: one line that names the variable, exit code 2, and no value that may be a secret.
func TestBadConfiguration(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  map[string]string // "" unsets
		want string
	}{
		{"no bus", map[string]string{"CINDERLIFT_TRANSPORT_URL": ""}, "CINDERLIFT_TRANSPORT_URL"},
		{"bus is no transport_url", map[string]string{"CINDERLIFT_TRANSPORT_URL": "amqp://user:canary@host"}, "CINDERLIFT_TRANSPORT_URL"},
		{"bus twice", map[string]string{"CINDERLIFT_TRANSPORT_URL_FILE": "/dev/null"}, "CINDERLIFT_TRANSPORT_URL"},
		{"no such file", map[string]string{"CINDERLIFT_TRANSPORT_URL": "", "CINDERLIFT_TRANSPORT_URL_FILE": "/nowhere"}, "CINDERLIFT_TRANSPORT_URL_FILE"},
		{"unknown variable", map[string]string{"CINDERLIFT_STRATEGY": "copy"}, "CINDERLIFT_STRATEGY"},
		{"unknown strategy", map[string]string{"CINDERLIFT_STRATEGIES": "copy,teleport"}, "CINDERLIFT_STRATEGIES"},
		{"strategy twice", map[string]string{"CINDERLIFT_STRATEGIES": "copy,copy"}, "CINDERLIFT_STRATEGIES"},
		{"register", map[string]string{"CINDERLIFT_REGISTER": "maybe"}, "CINDERLIFT_REGISTER"},
		{"fsid", map[string]string{"CINDERLIFT_IMAGE_FSID": "mine"}, "CINDERLIFT_IMAGE_FSID"},
		{"queue type", map[string]string{"CINDERLIFT_QUEUE_TYPE": "stream"}, "CINDERLIFT_QUEUE_TYPE"},
		{"slots", map[string]string{"CINDERLIFT_SLOTS": "0"}, "CINDERLIFT_SLOTS"},
		{"slots are no number", map[string]string{"CINDERLIFT_SLOTS": "canary"}, "CINDERLIFT_SLOTS"},
		{"lease", map[string]string{"CINDERLIFT_LEASE_TTL": "1s"}, "CINDERLIFT_LEASE_TTL"},
		{"patience", map[string]string{"CINDERLIFT_PATIENCE": "-1s"}, "CINDERLIFT_PATIENCE"},
		{"volume names", map[string]string{"CINDERLIFT_VOLUME_NAMES": "volume"}, "CINDERLIFT_VOLUME_NAMES"},
		{"log level", map[string]string{"CINDERLIFT_LOG_LEVEL": "loud"}, "CINDERLIFT_LOG_LEVEL"},
		{"no Keystone", map[string]string{"OS_AUTH_URL": ""}, "OS_AUTH_URL"},
		{"no user", map[string]string{"OS_USERNAME": ""}, "OS_USERNAME"},
		{"no password", map[string]string{"OS_PASSWORD": ""}, "OS_PASSWORD"},
		{"no project", map[string]string{"OS_PROJECT_NAME": ""}, "OS_PROJECT_NAME"},
		{"password twice", map[string]string{"OS_PASSWORD_FILE": "/dev/null"}, "OS_PASSWORD"},
		{"cloud and user", map[string]string{"OS_CLOUD": "mine"}, "OS_CLOUD"},
		{"user and credential", map[string]string{"OS_APPLICATION_CREDENTIAL_ID": "x"}, "OS_APPLICATION_CREDENTIAL_ID"},
		{"credential without secret", map[string]string{"OS_USERNAME": "", "OS_PASSWORD": "", "OS_APPLICATION_CREDENTIAL_ID": "x"},
			"OS_APPLICATION_CREDENTIAL_SECRET"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			env := complete()
			for k, v := range tt.set {
				env[k] = v
				if v == "" {
					delete(env, k)
				}
			}
			environment(t, env)
			var out, errs bytes.Buffer
			if code := run(t.Context(), []string{"serve"}, &out, &errs); code != exitUsage {
				t.Errorf("exit code %d, want %d", code, exitUsage)
			}
			text := errs.String()
			if strings.Count(text, "\n") != 1 || !strings.Contains(text, tt.want) {
				t.Errorf("want one line that names %s, got:\n%s", tt.want, text)
			}
			if strings.Contains(text, "canary") {
				t.Errorf("a value is shown: %s", text)
			}
		})
	}
}

func TestSecretsComeFromFiles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("rabbit://u:p@h/\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := complete()
	delete(env, "CINDERLIFT_TRANSPORT_URL")
	env["CINDERLIFT_TRANSPORT_URL_FILE"] = file
	environment(t, env)
	c, _, err := loadConfig()
	if err != nil || string(c.TransportURL) != "rabbit://u:p@h/" {
		t.Errorf("got %q, %v", string(c.TransportURL), err)
	}
}

func TestSecretsAreNeverShown(t *testing.T) {
	environment(t, complete())
	c, o, err := loadConfig()
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("config", "config", c, "openstack", o, "password", o.Password)
	for _, s := range []string{fmt.Sprint(c, o), fmt.Sprintf("%+v %#v %s %q", c, o, o.Password, o.Password), log.String()} {
		if strings.Contains(s, "canary") {
			t.Errorf("shown: %s", s)
		}
	}
}

// TestOperatorsTable keeps docs/operator.md and the program in step. `cinderlift config -o json` is its source.
func TestOperatorsTable(t *testing.T) {
	page, err := os.ReadFile("../../docs/operator.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range settings() {
		if s.Meaning == "" {
			t.Errorf("%s has no meaning", s.Variable)
		}
		line := fmt.Sprintf("| `%s` | %s | %s |", s.Variable, code(s.Default), strings.ReplaceAll(s.Meaning, "|", `\|`))
		if !strings.Contains(string(page), line+"\n") {
			t.Errorf("docs/operator.md lacks the line\n%s", line)
		}
	}
}

func code(s string) string {
	if s == "" {
		return ""
	}

	return "`" + s + "`"
}

func TestExitCodesAndHelp(t *testing.T) {
	environment(t, nil)
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--help"}, exitOK, "cinderlift check"},
		{[]string{"serve", "--help"}, exitOK, "SIGTERM"},
		{[]string{"jobs", "--help"}, exitOK, "-o json"},
		{[]string{"config"}, exitOK, "CINDERLIFT_SLOTS"},
		{[]string{"config", "-o", "json"}, exitOK, `"variable": "CINDERLIFT_SLOTS"`},
		{[]string{"config", "-o", "xml"}, exitUsage, "--output"},
		{[]string{"serve", "surplus"}, exitUsage, "surplus"},
		{[]string{"serve", "--surplus"}, exitUsage, "surplus"},
		{[]string{"surplus"}, exitUsage, "surplus"},
		{[]string{"check"}, exitUsage, "CINDERLIFT_TRANSPORT_URL"},
	} {
		var both bytes.Buffer
		if got := run(t.Context(), tt.args, &both, &both); got != tt.code || !strings.Contains(both.String(), tt.want) {
			t.Errorf("cinderlift %v: exit code %d, want %d; want %q in:\n%s", tt.args, got, tt.code, tt.want, both.String())
		}
	}
}
