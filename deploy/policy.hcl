# The permissions that the controller needs: to read services, in every namespace.
namespace "*" {
  capabilities = ["read-job"]
}

# And to hold the lock of its leader, `leader.lock`, in the namespace and under the name of its own job. This block alone
# counts for this namespace, so it has the capability from above, too.
namespace "default" {
  capabilities = ["read-job"]

  variables {
    path "nomad/jobs/nomad-haproxy/lock" {
      capabilities = ["read", "write"]
    }
  }
}
