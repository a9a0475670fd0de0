job "hello" {
  group "g" {
    count          = 2
    # Deregistered first, stopped three seconds later: no request is lost when it scales down.
    shutdown_delay = "3s"
    network {
      port "http" {}
    }
    service {
      name     = "hello"
      provider = "nomad"
      port     = "http"
      tags     = ["haproxy.enable=true"]
    }
    task "t" {
      driver = "raw_exec"
      config {
        command = "/bin/sh"
        args    = ["-c", "mkdir -p www && echo \"hello from $NOMAD_ALLOC_ID\" > www/index.html && exec busybox httpd -f -p $NOMAD_ADDR_http -h www"]
      }
      resources {
        cpu    = 20
        memory = 32
      }
    }
  }
}
