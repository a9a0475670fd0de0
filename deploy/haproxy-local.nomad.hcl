# HAProxy on every node of a node pool, each with a controller of its own beside it, without the Data Plane API.
#
#   nomad acl policy apply -namespace default -job haproxy-local haproxy-local deploy/policy-local.hcl
#   nomad job run deploy/haproxy-local.nomad.hcl
#
# The two share the folder of their allocation: the configuration file, which the controller writes, and HAProxy's master
# socket. The file starts from the template below when an allocation starts; the controller adds its backends within one
# pass. A new version of the job, or of the template, replaces both tasks, one node after the other.
#
# The nodes need HAProxy 3.0 or newer and nomad-haproxy, or docker or podman and an image that has both, as README.md beside
# this file shows it: `-var driver=docker -var image=…`.

variable "haproxy" {
  type        = string
  default     = "/usr/sbin/haproxy"
  description = "The executable on the nodes, or in the image"
}

variable "binary" {
  type        = string
  default     = "/usr/local/bin/nomad-haproxy"
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
  description = "For docker and podman: an image with HAProxy and nomad-haproxy, which runs the command that it gets"
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

job "haproxy-local" {
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
      port "controller" {}
    }

    restart {
      attempts = 10
      interval = "10m"
      delay    = "5s"
      mode     = "delay"
    }

    # Health and metrics of each controller. It is ready when its HAProxy has what the catalog asks for.
    service {
      name     = "nomad-haproxy-local"
      provider = "nomad"
      port     = "controller"

      check {
        name     = "live"
        type     = "http"
        path     = "/healthz"
        interval = "10s"
        timeout  = "2s"
      }
      check {
        name     = "ready"
        type     = "http"
        path     = "/readyz"
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
        # A task that is restarted keeps its file. With `-W` there is a master, which outlives reloads; `-S` is its socket,
        # through which the controller reads the process, changes it, and has it reload.
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

    task "controller" {
      driver = var.driver

      # HAProxy is there first.
      lifecycle {
        hook    = "poststart"
        sidecar = true
      }

      # A pass that has begun is finished first.
      kill_timeout = "60s"

      identity {
        file        = true
        change_mode = "noop"
      }

      config {
        image        = var.image == "" ? null : var.image
        network_mode = var.image == "" ? null : "host"
        command      = var.binary
        args = [
          "run",
          "--nomad-address=unix://${NOMAD_SECRETS_DIR}/api.sock",
          # Nomad renews the identity's token in this file; it is read again for each request.
          "--nomad-token-file=${NOMAD_SECRETS_DIR}/nomad_token",
          # Nomad sets NOMAD_NAMESPACE to the job's own, which would hide all others.
          "--nomad-namespace=*",
          "--http-listen=${NOMAD_ADDR_controller}",
          "--log-format=json",
        ]
      }

      # There is no `leader.lock`: it is for several controllers of one HAProxy, and here each writes its own. For the same
      # reason all may have the same `haproxy.owner`.
      env {
        # As in `haproxy.target`, metrics and logs.
        HAPROXY_NAME          = "${node.unique.name}"
        HAPROXY_CONFIG_FILE   = "${NOMAD_ALLOC_DIR}/data/haproxy.cfg"
        HAPROXY_MASTER_SOCKET = "${NOMAD_ALLOC_DIR}/data/master.sock"
        # It validates with the same executable as HAProxy runs, and as it was started above: where tasks are isolated,
        # the process cannot be looked at.
        HAPROXY_BINARY            = var.haproxy
        HAPROXY_FILES             = "${NOMAD_ALLOC_DIR}/data/haproxy.cfg"
        HAPROXY_WORKING_DIRECTORY = "${NOMAD_ALLOC_DIR}/data"
      }

      resources {
        cpu    = 200
        memory = 256
      }
    }
  }
}
