# The only permission that the controller needs: to read services, in every namespace.
namespace "*" {
  capabilities = ["read-job"]
}
