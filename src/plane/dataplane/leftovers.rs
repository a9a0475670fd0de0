//! Transactions that an earlier run left open when it was killed. The API keeps them until it restarts,
//! and has room for 20.

use crate::observed::Observed;

use super::super::AccessError;
use super::meaning::managed;
use super::{Dataplane, RAW, TRANSACTIONS};

/// The number of open transactions above which empty ones are dropped too: half of the API's limit. An empty one
/// contains no work, but another client may just have opened it.
const CROWDED: usize = 10;

/// What an open transaction is to us.
#[derive(Debug, PartialEq, Eq)]
enum Leftover {
    /// It can never be committed, or differs from the file only in what carries our owner.
    Ours,
    /// It is the same as the file.
    Empty,
    /// It may be another tool's current work.
    Foreign,
}

impl Dataplane {
    /// Drops the transactions that are certainly leftovers, and the empty ones if there are many.
    pub(super) async fn clear_leftovers(&self) -> Result<(), AccessError> {
        let body = self.client.get(TRANSACTIONS, &[]).await?.json()?;
        let open: Vec<_> = body.as_array().into_iter().flatten().collect();
        if open.is_empty() {
            return Ok(());
        }
        let observed = super::super::Plane::observe(self).await?;
        let crowded = open.len() > CROWDED;
        for transaction in open {
            let Some(id) = transaction["id"].as_str() else { continue };
            let outdated = transaction["_version"].as_u64().is_some_and(|version| version < observed.version);
            let kind = if outdated || transaction["status"] == "failed" {
                Leftover::Ours
            } else {
                self.kind(id, &observed).await?
            };
            if kind == Leftover::Ours || (kind == Leftover::Empty && crowded) {
                self.drop_transaction(id).await?;
                tracing::info!(id, "dropped a transaction that was left behind");
            }
        }
        Ok(())
    }

    async fn kind(&self, id: &str, observed: &Observed) -> Result<Leftover, AccessError> {
        let answer =
            self.client.send(reqwest::Method::GET, RAW, &[("transaction_id", id)], super::Body::default()).await?;
        if !answer.status.is_success() {
            return Ok(Leftover::Foreign);
        }
        let staged = observed.again(answer.config_text());
        Ok(if staged.foreign() != observed.foreign() {
            Leftover::Foreign
        } else if managed(&staged) == managed(observed) {
            Leftover::Empty
        } else {
            Leftover::Ours
        })
    }
}
