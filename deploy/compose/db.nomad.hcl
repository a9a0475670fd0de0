# Has Nomad's catalog name the database of the compose file, as if a job ran it.
job "db" {
  group "g" {
    service {
      name     = "db"
      provider = "nomad"
      address  = "127.0.0.1"
      port     = "3306"
      tags     = ["haproxy.enable=true", "haproxy.mode=tcp"]
    }
    task "t" {
      driver = "raw_exec"
      config {
        command = "/bin/sh"
        args    = ["-c", "exec tail -f /dev/null"]
      }
      resources {
        cpu    = 10
        memory = 16
      }
    }
  }
}
