//! What the API makes of a file before anything is edited.
//!
//! Every write renders the whole file, by any client and any endpoint (seen on 3.0, 3.2 and 3.4). The rendering loses
//! what the API's parser does not know, so it is checked first: the text of a transaction without edits is what any
//! commit would make of the rest of the file.

use std::time::Duration;

use crate::observed::{Foreign, Observed, harm, lost_comments};

use super::super::{Harm, Survey, WriteError};
use super::Dataplane;

/// The API notices an edit of the file by hand only a moment later: until then its transactions contain the text from
/// before, which would look like harm.
const SETTLING: Duration = Duration::from_secs(2);
/// Between two polls in that time.
const POLL: Duration = Duration::from_millis(200);

/// A survey, and the file that it was made of.
#[derive(Debug)]
pub(super) struct Surveyed {
    foreign: Foreign,
    survey: Survey,
}

impl Dataplane {
    /// Surveys the file, unless what is not ours in it is the same as at the last survey.
    pub(super) async fn surveyed(&self, observed: &Observed) -> Result<Survey, WriteError> {
        if let Some(line) = observed.text.conditional() {
            let word = observed.text.lines()[line].split_whitespace().next().unwrap_or_default().to_owned();
            return Ok(Survey { harm: Some(Harm::Conditional { line: line + 1, word }), ..Survey::default() });
        }
        let foreign = observed.foreign();
        let mut last = self.surveyed.lock().await;
        if let Some(known) = last.as_ref().filter(|known| known.foreign == foreign) {
            // Logged once.
            return Ok(Survey { comments: Vec::new(), ..known.survey.clone() });
        }
        let deadline = tokio::time::Instant::now() + SETTLING;
        let survey = loop {
            let rendered = self.rendered(observed).await?;
            let lines = harm(observed, &rendered);
            if lines.is_empty() || tokio::time::Instant::now() > deadline {
                let harm = (!lines.is_empty()).then_some(Harm::Rendering { lines });
                break Survey { harm, comments: lost_comments(observed, &rendered) };
            }
            tokio::time::sleep(POLL).await;
        };
        *last = Some(Surveyed { foreign, survey: survey.clone() });
        Ok(survey)
    }

    async fn rendered(&self, observed: &Observed) -> Result<Observed, WriteError> {
        let transaction = self.open(observed.version).await?;
        let text = self.staged_text(&transaction).await;
        match text {
            Ok(_) => self.drop_transaction(&transaction).await?,
            Err(_) => self.drop_after_failure(&transaction).await,
        }
        Ok(observed.again(text?))
    }
}
