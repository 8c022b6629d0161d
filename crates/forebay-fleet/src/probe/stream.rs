//! Answers that are read as they come: the watch of an API server, the events of the live page.

use std::time::Duration;

use bytes::Bytes;
use http::{StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::{ProbeClient, ProbeError, body, request, with_causes, within};
use crate::telemetry::labels::ProbeFailure;
use forebay_core::stream::EventData;

impl ProbeClient {
    /// The status of an answer whose body is read as it comes. Dropping that closes the connection.
    ///
    /// # Errors
    /// No head of an answer before `deadline`, or a broken connection.
    pub async fn open(
        &self,
        uri: Uri,
        key: Option<&str>,
        deadline: Duration,
    ) -> Result<(StatusCode, ProbeStream), ProbeError> {
        let what = uri.path().to_owned();
        let answer = async { self.begin(request(uri, key)?).await };
        let response = within(deadline, &what, answer).await?;
        Ok((response.status(), ProbeStream(response.into_body())))
    }

    /// Reads a stream of server-sent events and hands on the data of each, until the stream ends (`None`) or
    /// `each` returns false. An answer other than 200 is given back whole.
    ///
    /// # Errors
    /// No answer, or no event, within `silence`; an event larger than `max_bytes`; a broken connection.
    pub async fn events(
        &self,
        uri: Uri,
        key: Option<&str>,
        silence: Duration,
        max_bytes: usize,
        mut each: impl FnMut(&str) -> bool,
    ) -> Result<Option<(StatusCode, Bytes)>, ProbeError> {
        let what = uri.path().to_owned();
        let answer = async { self.begin(request(uri, key)?).await };
        let response = within(silence, &what, answer).await?;
        let status = response.status();
        if status != StatusCode::OK {
            let body = within(silence, &what, body(response.into_body(), max_bytes)).await?;
            return Ok(Some((status, body)));
        }
        // From here on there is no end to wait for: each piece has the time that the first one had.
        let (mut stream, mut events) = (ProbeStream(response.into_body()), EventData::new(max_bytes));
        while let Some(mut piece) = stream.next(silence).await? {
            // A server that never ends an event must not fill the memory.
            let too_large = |_| {
                let words = format!("an event is larger than {max_bytes} bytes");
                ProbeError::new(ProbeFailure::TooLarge, words)
            };
            while let Some(data) = events.next(&mut piece).map_err(too_large)? {
                if !each(&String::from_utf8_lossy(&data)) {
                    return Ok(None);
                }
            }
        }
        Ok(None)
    }
}

/// A body that is read as it comes.
#[derive(Debug)]
pub struct ProbeStream(Incoming);

impl ProbeStream {
    /// The next bytes; `None` at the end of the body.
    ///
    /// # Errors
    /// Nothing came within `limit`, or the connection broke.
    pub async fn next(&mut self, limit: Duration) -> Result<Option<Bytes>, ProbeError> {
        let frame = async {
            loop {
                let Some(frame) = self.0.frame().await else { return Ok(None) };
                let frame = frame.map_err(|error| ProbeError::new(ProbeFailure::Broken, with_causes(&error)))?;
                // What is no data are trailers, before the end.
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        };
        within(limit, "a body that is read as it comes", frame).await
    }
}
