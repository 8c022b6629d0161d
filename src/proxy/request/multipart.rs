//! The model that a form names (audio transcriptions). The form itself is passed on untouched.

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;

/// The `model` field of a multipart form; `None` where it has none or is no such form, which is for the backend to answer.
pub async fn model(headers: &HeaderMap, body: &Bytes) -> Option<String> {
    let boundary = multer::parse_boundary(headers.get(CONTENT_TYPE)?.to_str().ok()?).ok()?;
    let whole = futures_util::stream::iter([Ok::<_, std::convert::Infallible>(body.clone())]);
    let mut form = multer::Multipart::new(whole, boundary);
    while let Ok(Some(field)) = form.next_field().await {
        if field.name() == Some("model") {
            return field.text().await.ok();
        }
    }
    None
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
        assert_eq!(model(&headers, &Bytes::from("nonsense")).await, None);
    }
}
