//! A comparison as a reader sees it: in a terminal, in Markdown, in HTML. Nothing is computed here but places on a page.

pub mod html;
pub mod markdown;
pub mod text;
