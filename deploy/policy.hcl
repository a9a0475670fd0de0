# All that the controller asks of Nomad: to read services, in every namespace.
namespace "*" {
  capabilities = ["read-job"]
}
