# nomad-haproxy for the whole cluster: two instances, of which one acts and the other one takes over.
#
#   nomad acl policy apply -namespace default -job nomad-haproxy nomad-haproxy deploy/policy.hcl
#   nomad var put nomad/jobs/nomad-haproxy password=PASSWORD
#   nomad job run -var haproxy_address=http://10.0.0.5:5555 deploy/nomad-haproxy.nomad.hcl
#
# The password is that of the Data Plane API. It may also be in a file on the nodes: `-var haproxy_password_file=…`, and no
# Nomad variable. For HAProxys that run as a Nomad job, see haproxy.nomad.hcl: `-var haproxy_service=haproxy-api`, and no
# address. In a container: `-var driver=docker -var image=…`, with an image that is built from Dockerfile.
#
# It lives in the namespace `default`; to move it, change `namespace` here and in policy.hcl. It talks to Nomad through the
# Task API with its own workload identity, so it needs no token of yours.

variable "driver" {
  type        = string
  default     = "raw_exec"
  description = "raw_exec or exec; docker or podman with an image"
}

variable "image" {
  type        = string
  default     = ""
  description = "For docker and podman: an image whose entrypoint is nomad-haproxy"
}

variable "binary" {
  type        = string
  default     = "/usr/local/bin/nomad-haproxy"
  description = "For raw_exec and exec: the executable on the nodes"
}

variable "haproxy_address" {
  type        = string
  default     = ""
  description = "The Data Plane API of the HAProxy to drive; or haproxy_service"
}

variable "haproxy_service" {
  type        = string
  default     = ""
  description = "The Nomad service whose registrations are Data Plane APIs, as in haproxy.nomad.hcl"
}

variable "haproxy_username" {
  type    = string
  default = "admin"
}

variable "haproxy_password_file" {
  type        = string
  default     = ""
  description = "For raw_exec: a file on the nodes with the password of the Data Plane APIs; empty: it is in the Nomad variable"
}

variable "datacenters" {
  type    = list(string)
  default = ["*"]
}

job "nomad-haproxy" {
  type        = "service"
  namespace   = "default"
  datacenters = var.datacenters
  priority    = 80

  group "controller" {
    # One has the lock and acts. The other one stands by, which is as good as ready: it takes over within moments when
    # the first one ends, and within 25 s when its node is lost.
    count = 2

    # On different nodes, where there are any.
    spread {
      attribute = "${node.unique.id}"
    }

    # One after the other, so that one is always there to act.
    update {
      max_parallel     = 1
      health_check     = "checks"
      min_healthy_time = "5s"
      healthy_deadline = "2m"
      auto_revert      = true
    }

    restart {
      attempts = 10
      interval = "10m"
      delay    = "5s"
      mode     = "delay"
    }

    network {
      port "http" {}
    }

    service {
      name     = "nomad-haproxy"
      provider = "nomad"
      port     = "http"

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

    task "nomad-haproxy" {
      driver = var.driver

      # A pass that has begun is finished first.
      kill_timeout = "60s"

      identity {
        file        = true
        change_mode = "noop"
      }

      # The job may read the variables below its own name. The file is read again for each request, so a new password
      # needs no restart.
      dynamic "template" {
        for_each = var.haproxy_password_file == "" ? ["secrets/haproxy-password"] : []
        content {
          destination = template.value
          change_mode = "noop"
          data        = "{{ with nomadVar \"nomad/jobs/nomad-haproxy\" }}{{ .password.Value }}{{ end }}"
        }
      }

      config {
        # A key that is null is left out.
        image        = var.image == "" ? null : var.image
        network_mode = var.image == "" ? null : "host"
        command      = var.image == "" ? var.binary : null
        args = [
          "run",
          "--nomad-address=unix://${NOMAD_SECRETS_DIR}/api.sock",
          # Nomad renews the identity's token in this file; it is read again for each request.
          "--nomad-token-file=${NOMAD_SECRETS_DIR}/nomad_token",
          # Nomad sets NOMAD_NAMESPACE to the job's own, which would hide all others.
          "--nomad-namespace=*",
          "--http-listen=${NOMAD_ADDR_http}",
          "--log-format=json",
        ]
      }

      env {
        # The variable that policy.hcl lets this job lock.
        NOMAD_HAPROXY_LEADER_LOCK      = "nomad/jobs/${NOMAD_JOB_ID}/lock"
        NOMAD_HAPROXY_LEADER_NAMESPACE = "${NOMAD_NAMESPACE}"

        HAPROXY_DATAPLANE_URL = var.haproxy_address
        HAPROXY_SERVICE       = var.haproxy_service
        HAPROXY_USERNAME      = var.haproxy_username
        HAPROXY_PASSWORD_FILE = var.haproxy_password_file == "" ? "${NOMAD_SECRETS_DIR}/haproxy-password" : var.haproxy_password_file
      }

      resources {
        cpu    = 200
        memory = 128
      }
    }
  }
}
