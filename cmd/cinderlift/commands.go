package main

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// commands builds the command line.
func commands() *cobra.Command {
	root := &cobra.Command{
		Use:   "cinderlift",
		Short: "Turns Cinder volumes into Glance images inside Ceph",
		Long: `cinderlift takes Cinder's copy_volume_to_image requests off the message bus and makes
the images inside the Ceph cluster that holds both. Every setting is an environment
variable; "cinderlift config" lists them.

Exit codes: 0 all right, 1 it was tried and failed, 2 configuration or command line, 3 something is left
(reap).`,
		Example: `  cinderlift check                 does everything answer, and may we do what we have to?
  cinderlift serve                 work until SIGTERM
  cinderlift jobs -o json          what is in the journal
  cinderlift reap --dry-run        what did jobs leave behind?`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version(),
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return errConfig{err} })
	root.Args = noArgs
	root.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	root.AddCommand(serveCommand(), checkCommand(), jobsCommand(), reapCommand(), deadCommand(), configCommand())

	return root
}

func serveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "serve",
		Short: "Work: take requests and make images until SIGTERM",
		Long: `serve takes requests and makes images. On SIGTERM it takes no more, lets running jobs go on
for CINDERLIFT_SOFT_STOP, hands over what is left to the other workers, and exits with 0.`,
		Example: `  CINDERLIFT_TRANSPORT_URL=rabbit://openstack:secret@10.0.0.5:5672/ \
  OS_AUTH_URL=https://keystone:5000 OS_USERNAME=cinderlift OS_PASSWORD_FILE=/run/secrets/os \
  OS_PROJECT_NAME=service cinderlift serve`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			inject, err := faults()
			if err != nil {
				return err
			}
			c, o, err := loadConfig()
			if err != nil {
				return err
			}

			return serve(cmd.Context(), c, o, inject, cmd.ErrOrStderr())
		},
	}
}

func configCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "config",
		Short:   "List every setting with its default",
		Example: "  cinderlift config\n  cinderlift config -o json | jq -r '.[].variable'",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return show(cmd.OutOrStdout(), output, settings(), writeSettings)
		},
	}
	outputFlag(cmd, &output)

	return cmd
}

func outputFlag(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "table", "table or json")
}

// show prints v as JSON, or as the table that write makes.
func show(w io.Writer, output string, v any, write func(io.Writer) error) error {
	switch output {
	case "table":
		return write(w)
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")

		return e.Encode(v)
	default:
		return errConfig{fmt.Errorf("--output: %q is neither table nor json", output)}
	}
}

// noArgs is cobra.NoArgs with our exit code.
func noArgs(cmd *cobra.Command, args []string) error {
	if err := cobra.NoArgs(cmd, args); err != nil {
		return errConfig{err}
	}

	return nil
}

// version is the module's, as the build recorded it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}

	return info.Main.Version
}
