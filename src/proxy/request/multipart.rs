//! The model that a form names (audio transcriptions). The form itself is passed on untouched.

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;

/// Parts that are looked at. vLLM's server takes at most 1000 fields and 1000 files.
const PARTS_MAX: usize = 2000;

/// The `model` field of a multipart form, the last one as vLLM takes it; `None` where it has none or is no such form, which is
/// for the backend to answer.
pub async fn model(headers: &HeaderMap, body: &Bytes) -> Option<String> {
    let boundary = multer::parse_boundary(headers.get(CONTENT_TYPE)?.to_str().ok()?).ok()?;
    let whole = futures_util::stream::iter([Ok::<_, std::convert::Infallible>(body.clone())]);
    let mut form = multer::Multipart::new(whole, boundary);
    let mut model = None;
    for _ in 0..PARTS_MAX {
        let Ok(Some(field)) = form.next_field().await else { break };
        if field.name() == Some("model") {
            model = field.text().await.ok();
        }
    }
    model
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_model_is_read_from_the_form() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, http::HeaderValue::from_static("multipart/form-data; boundary=X"));
        let body = "--X\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIFF\r\n\
                    --X\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper\r\n--X--\r\n";
        assert_eq!(model(&headers, &Bytes::from(body)).await.as_deref(), Some("whisper"));
        let twice =
            body.replace("--X--", "--X\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nother\r\n--X--");
        assert_eq!(model(&headers, &Bytes::from(twice)).await.as_deref(), Some("other"));
        assert_eq!(model(&headers, &Bytes::from("nonsense")).await, None);
    }
}
