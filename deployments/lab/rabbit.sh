# shellcheck shell=bash
# RabbitMQ of the lab: its own node name, cookie, ports, name server (epmd) and data. Sourced by lab.

rabbit_environment() { # sets ENVIRONMENT
  local dir=$LAB_DIR/rabbit
  ENVIRONMENT=(
    "HOME=$dir/home" "RABBITMQ_NODENAME=lab@localhost" RABBITMQ_NODE_IP_ADDRESS=127.0.0.1
    "RABBITMQ_NODE_PORT=$AMQP_PORT" "RABBITMQ_DIST_PORT=$AMQP_DIST_PORT" "ERL_EPMD_PORT=$EPMD_PORT" ERL_EPMD_ADDRESS=127.0.0.1
    "RABBITMQ_MNESIA_BASE=$dir/mnesia" "RABBITMQ_LOG_BASE=$LAB_DIR/log" RABBITMQ_LOGS=-
    "RABBITMQ_ENABLED_PLUGINS_FILE=$dir/enabled_plugins" "RABBITMQ_CONFIG_FILE=$dir/rabbitmq" "RABBITMQ_CONF_ENV_FILE=$dir/env.conf"
    "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}"
    # Without this the start script stays as the parent of the broker; with it, it execs, and our pid is the broker.
    RABBITMQ_ALLOW_INPUT=1 RABBITMQ_SERVER_START_ARGS=-noinput
  )
}

rabbit_command() { # rabbit_command DAEMON: sets COMMAND
  local ENVIRONMENT
  rabbit_environment
  case $1 in
    # A broker would start the name server itself, as a daemon that outlives it and that nobody stops.
    epmd) COMMAND=(sh -c "exec \$(ls /usr/bin/epmd /usr/lib/erlang/bin/epmd 2>/dev/null | head -n 1) -address 127.0.0.1 -port $EPMD_PORT") ;;
    rabbit) COMMAND=("${ENVIRONMENT[@]}" /usr/lib/rabbitmq/bin/rabbitmq-server) ;;
  esac
}

rabbitctl() {
  local ENVIRONMENT
  rabbit_environment
  inside "${ENVIRONMENT[@]}" /usr/lib/rabbitmq/bin/rabbitmqctl -q "$@"
}

make_rabbit() {
  local dir=$LAB_DIR/rabbit
  rm -rf "$dir"
  mkdir -p "$dir"/{home,mnesia}
  head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$dir/home/.erlang.cookie"
  chmod 400 "$dir/home/.erlang.cookie"
  echo '[].' > "$dir/enabled_plugins"
  : > "$dir/env.conf"
  # default_user makes the account on the first start: no rabbitmqctl, which costs seconds.
  cat > "$dir/rabbitmq.conf" <<C
disk_free_limit.absolute = 100MB
default_user = openstack
default_pass = $PASSWORD
default_user_tags.administrator = true
default_permissions.configure = .*
default_permissions.read = .*
default_permissions.write = .*
log.console.level = info
C
  touch "$dir/.made"
}

# amqp_answers: the broker speaks AMQP 0-9-1 (its first frame is a method frame on channel 0). It listens only when it
# is ready, so this is as good as 'rabbitmqctl await_startup' and 5 s faster.
amqp_answers() (
  exec 2> /dev/null 7<> "/dev/tcp/127.0.0.1/$AMQP_PORT" || exit 1
  printf 'AMQP\x00\x00\x09\x01' >&7
  [ "$(timeout 5 head -c 1 <&7 | od -An -tx1 | tr -d ' ')" = 01 ]
)

rabbit_up() {
  [ -e "$LAB_DIR/rabbit/.made" ] || make_rabbit
  launch epmd
  alive rabbit && amqp_answers && return 0
  port_open "$EPMD_PORT" || await 10 epmd "rabbit: epmd listens" port_open "$EPMD_PORT"
  launch rabbit
  await 90 rabbit "rabbit: broker answers" amqp_answers
}
