//! An answer in lines that does not end.

use std::time::Duration;

use super::NomadError;

/// The longest line. One of 500 services at once had 300 kB (seen); a Raft entry of 20 000 is not read by event.
const LONGEST: usize = 16 * 1024 * 1024;

/// Its lines, as they come.
#[derive(Debug)]
pub struct Lines {
    response: reqwest::Response,
    address: String,
    /// What came after the last complete line.
    rest: Vec<u8>,
    /// How much of that is known to have no end of line.
    searched: usize,
}

impl Lines {
    pub(super) fn new(response: reqwest::Response, address: String) -> Self {
        Self { response, address, rest: Vec::new(), searched: 0 }
    }

    /// The next line, if it comes within this time.
    pub async fn next(&mut self, within: Duration) -> Result<Vec<u8>, NomadError> {
        match tokio::time::timeout(within, self.line()).await {
            Ok(line) => line,
            Err(_) => Err(NomadError::Stream("Nomad's event stream is silent")),
        }
    }

    async fn line(&mut self) -> Result<Vec<u8>, NomadError> {
        loop {
            if let Some(at) = self.rest[self.searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.rest.drain(..=self.searched + at).collect();
                self.searched = 0;
                return Ok(line);
            }
            self.searched = self.rest.len();
            if self.rest.len() > LONGEST {
                return Err(NomadError::Stream("a line of Nomad's event stream is too long"));
            }
            let chunk = self.response.chunk().await.map_err(|source| NomadError::Unreachable {
                address: self.address.clone(),
                source: source.without_url(),
            })?;
            match chunk {
                Some(chunk) => self.rest.extend_from_slice(&chunk),
                None => return Err(NomadError::Stream("Nomad ended the event stream")),
            }
        }
    }
}
