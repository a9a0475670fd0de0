# What a controller needs that writes its HAProxy alone, without `leader.lock`: to read services, in every namespace.
namespace "*" {
  capabilities = ["read-job"]
}
