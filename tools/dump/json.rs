//! JSON, as far as it has to be written.

use std::fmt::Write as _;

/// What a JSON document is made of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Int(i64),
    Number(f64),
    Text(String),
    Array(Vec<Self>),
    Object(Vec<(String, Self)>),
}

impl From<u64> for Json {
    fn from(count: u64) -> Self {
        Self::Int(i64::try_from(count).unwrap_or(i64::MAX))
    }
}

impl Json {
    /// Text that is part of the program.
    pub(crate) fn text_of(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    /// The document, on one line.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(bool) => _ = write!(out, "{bool}"),
            Self::Int(int) => _ = write!(out, "{int}"),
            // There are no others in JSON.
            Self::Number(number) if !number.is_finite() => out.push_str("null"),
            Self::Number(number) => _ = write!(out, "{number}"),
            Self::Text(text) => write_text(out, text),
            Self::Array(items) => {
                out.push('[');
                for (n, item) in items.iter().enumerate() {
                    if n > 0 {
                        out.push_str(", ");
                    }
                    item.write(out);
                }
                out.push(']');
            }
            Self::Object(members) => {
                out.push('{');
                for (n, (name, value)) in members.iter().enumerate() {
                    if n > 0 {
                        out.push_str(", ");
                    }
                    write_text(out, name);
                    out.push_str(": ");
                    value.write(out);
                }
                out.push('}');
            }
        }
    }
}

fn write_text(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            control if control < ' ' => _ = write!(out, "\\u{:04x}", control as u32),
            other => out.push(other),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_what_others_read() {
        let json = Json::Object(vec![
            ("a".to_owned(), Json::Int(i64::MIN)),
            (
                "b".to_owned(),
                Json::Array(vec![Json::Null, Json::Bool(true), Json::Number(f64::NAN)]),
            ),
            ("c\n".to_owned(), Json::Text("\"x\\\u{e9}\0".to_owned())),
            ("d".to_owned(), Json::Number(1e300)),
        ]);
        let read: serde_json::Value = serde_json::from_str(&json.text()).unwrap();
        assert_eq!(read["a"], i64::MIN);
        assert_eq!(read["b"][1], true);
        assert_eq!(read["c\n"], "\"x\\\u{e9}\0");
        assert_eq!(read["d"], 1e300);
    }
}
