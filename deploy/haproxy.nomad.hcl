# HAProxy with its Data Plane API on every node of a node pool, found by nomad-haproxy through `haproxy.service`.
#
#   nomad var put nomad/jobs/haproxy username=admin password=PASSWORD
#   nomad job run deploy/haproxy.nomad.hcl
#   nomad acl policy apply -namespace default -job nomad-haproxy nomad-haproxy deploy/policy.hcl
#   nomad var put nomad/jobs/nomad-haproxy password=PASSWORD
#   nomad job run -var haproxy_service=haproxy-api deploy/nomad-haproxy.nomad.hcl
#
# The nodes need HAProxy 3.0 or newer, the Data Plane API 3 and socat, or docker or podman and an image that has all three:
# `-var driver=docker -var image=haproxytech/haproxy-debian:3.2`. The file starts from the template below when an
# allocation starts; the controller then adds its backends within one pass.

variable "haproxy" {
  type        = string
  default     = "/usr/sbin/haproxy"
  description = "The executable on the nodes, or in the image"
}

variable "dataplaneapi" {
  type        = string
  default     = "/usr/local/bin/dataplaneapi"
  description = "The executable on the nodes, or in the image"
}

variable "driver" {
  type        = string
  default     = "exec"
  description = "exec, or raw_exec where the nodes cannot isolate tasks; docker or podman with an image"
}

variable "image" {
  type        = string
  default     = ""
  description = "For docker and podman: an image with HAProxy, the Data Plane API and socat"
}

variable "node_pool" {
  type    = string
  default = "default"
}

variable "bind" {
  type        = string
  default     = "*"
  description = "The address that requests come to"
}

variable "http_port" {
  type        = number
  default     = 80
  description = "The port that requests come to; 0: Nomad chooses one for each node"
}

job "haproxy" {
  type        = "system"
  namespace   = "default"
  datacenters = ["*"]
  node_pool   = var.node_pool
  priority    = 90

  # One node after the other.
  update {
    max_parallel = 1
    stagger      = "30s"
  }

  group "edge" {
    network {
      port "http" {
        static = var.http_port
      }
      port "api" {}
    }

    restart {
      attempts = 10
      interval = "10m"
      delay    = "5s"
      mode     = "delay"
    }

    # Each registration is a HAProxy for the controller, named by its node.
    service {
      name     = "haproxy-api"
      provider = "nomad"
      port     = "api"

      check {
        type     = "tcp"
        interval = "10s"
        timeout  = "2s"
      }
    }

    task "haproxy" {
      driver = var.driver

      # Open connections may end first.
      kill_signal  = "SIGUSR1"
      kill_timeout = "30s"

      template {
        destination = "local/haproxy.cfg"
        change_mode = "noop"
        data        = <<-EOT
          global
              log stdout format raw local0

          defaults base
              log global
              mode http
              option httplog
              timeout connect 5s
              timeout client 30s
              timeout server 30s

          # A request for hello.example.com goes to the backend `hello`.
          frontend web
              bind ${var.bind}:{{ env "NOMAD_PORT_http" }}
              use_backend %[req.hdr(host),field(1,:),field(1,.),lower]
        EOT
      }

      config {
        # A key that is null is left out.
        image        = var.image == "" ? null : var.image
        network_mode = var.image == "" ? null : "host"
        command      = "/bin/sh"
        # A task that is restarted keeps its file.
        args = ["-c", <<-EOT
          cd "$NOMAD_ALLOC_DIR/data" || exit 1
          [ -e haproxy.cfg ] || cp "$NOMAD_TASK_DIR/haproxy.cfg" haproxy.cfg
          exec ${var.haproxy} -W -S "$NOMAD_ALLOC_DIR/data/master.sock,mode,600" -f "$NOMAD_ALLOC_DIR/data/haproxy.cfg"
        EOT
        ]
      }

      resources {
        cpu    = 500
        memory = 256
      }
    }

    task "dataplaneapi" {
      driver = var.driver

      lifecycle {
        hook    = "poststart"
        sidecar = true
      }

      template {
        destination = "secrets/dataplaneapi.yml"
        data        = <<-EOT
          config_version: 2
          name: haproxy
          dataplaneapi:
            host: {{ env "NOMAD_IP_api" }}
            port: {{ env "NOMAD_PORT_api" }}
            scheme:
              - http
            user:
          {{- with nomadVar "nomad/jobs/haproxy" }}
              - name: {{ .username.Value | toJSON }}
                password: {{ .password.Value | toJSON }}
                insecure: true
          {{- end }}
            transaction:
              transaction_dir: {{ env "NOMAD_ALLOC_DIR" }}/data/transactions
            resources:
              maps_dir: {{ env "NOMAD_ALLOC_DIR" }}/data/maps
              ssl_certs_dir: {{ env "NOMAD_ALLOC_DIR" }}/data/ssl
              general_storage_dir: {{ env "NOMAD_ALLOC_DIR" }}/data/general
              dataplane_storage_dir: {{ env "NOMAD_ALLOC_DIR" }}/data/storage
              spoe_dir: {{ env "NOMAD_ALLOC_DIR" }}/data/spoe
              spoe_transaction_dir: {{ env "NOMAD_ALLOC_DIR" }}/data/spoe-transactions
          haproxy:
            config_file: {{ env "NOMAD_ALLOC_DIR" }}/data/haproxy.cfg
            haproxy_bin: ${var.haproxy}
            master_runtime: {{ env "NOMAD_ALLOC_DIR" }}/data/master.sock
            master_worker_mode: true
            reload:
              reload_delay: 1
              reload_strategy: custom
              reload_cmd: {{ env "NOMAD_TASK_DIR" }}/reload
              restart_cmd: {{ env "NOMAD_TASK_DIR" }}/reload
        EOT
      }

      template {
        destination = "local/reload"
        perms       = "755"
        data        = <<-EOT
          #!/bin/sh
          # The master answers `Success=1` once the new worker runs.
          echo reload | socat -t60 - "UNIX-CONNECT:$NOMAD_ALLOC_DIR/data/master.sock" | tee /dev/stderr | grep -q Success=1
        EOT
      }

      config {
        image        = var.image == "" ? null : var.image
        network_mode = var.image == "" ? null : "host"
        command      = "/bin/sh"
        # The API writes its own settings when it starts, and the template belongs to root.
        args = ["-c", <<-EOT
          cd "$NOMAD_ALLOC_DIR/data" && mkdir -p transactions maps ssl general storage spoe spoe-transactions || exit 1
          umask 077 && cp "$NOMAD_SECRETS_DIR/dataplaneapi.yml" "$NOMAD_SECRETS_DIR/own.yml" || exit 1
          exec ${var.dataplaneapi} -f "$NOMAD_SECRETS_DIR/own.yml"
        EOT
        ]
      }

      resources {
        cpu    = 200
        memory = 256
      }
    }
  }
}
