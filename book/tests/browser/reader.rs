//! A browser, and what can be asked of it.
//!
//! It does not know which pages there are, and what must be on them.

use std::time::Duration;

use fantoccini::wd::{Capabilities, WebDriverCompatibleCommand};
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{json, Value};

/// No test takes as long, even on a busy machine: a browser that hangs ends it.
const LIMIT: Duration = Duration::from_secs(600);

/// How long a search may take that goes on while the reader types.
const SEARCH: Duration = Duration::from_secs(30);

/// What the page knows of itself.
const LOOK: &str = r##"
    const all = (what, each) => [...document.querySelectorAll(what)].map(each);
    const main = document.querySelector("main");
    return {
        title: document.title,
        heading: main?.querySelector("h1")?.innerText ?? "",
        height: main?.getBoundingClientRect().height ?? 0,
        links: all("a[href]", e => e.href),
        anchors: all("[id]", e => e.id),
        pictures: all("main img", e => [e.src, e.naturalWidth]),
    };
"##;

/// The addresses of what a search has found, if it has ended.
const FOUND: &str = r##"
    const header = document.querySelector("#mdbook-searchresults-header");
    const done = header && header.innerText.includes(arguments[0]);
    return done
        ? [...document.querySelectorAll("#mdbook-searchresults a")].map(e => e.href)
        : null;
"##;

/// A page, as it was seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) address: String,
    pub(crate) title: String,
    pub(crate) heading: String,
    /// Of what is written on it, in pixels.
    pub(crate) height: f64,
    /// Addresses, as the browser follows them.
    pub(crate) links: Vec<String>,
    pub(crate) anchors: Vec<String>,
    /// Those that are not shown.
    pub(crate) missing_pictures: Vec<String>,
    /// What the browser has reported: errors of scripts, files that are not there.
    pub(crate) reports: Vec<String>,
}

/// A browser.
pub(crate) struct Reader {
    client: Client,
}

/// Gives a browser to a test, and ends it.
pub(crate) fn with<T>(test: impl AsyncFnOnce(&Reader) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let all = async {
        let reader = Reader::start().await;
        let result = test(&reader).await;
        reader.client.close().await.unwrap();
        result
    };
    runtime.block_on(async {
        let limited = tokio::time::timeout(LIMIT, all);
        limited.await.expect("the browser answers in time")
    })
}

impl Reader {
    async fn start() -> Self {
        let driver = std::env::var("VIRTIO_HMM_WEBDRIVER").expect("use cargo xtask test book");
        let capabilities = json!({
            "browserName": "chrome",
            "goog:loggingPrefs": { "browser": "ALL" },
            "goog:chromeOptions": { "args": [
                "--headless",
                // It is root in a root directory of its own, and sees files of ours only.
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--disable-gpu",
                // Nothing is loaded from elsewhere.
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                "--window-size=1300,900",
            ] },
        });
        let Value::Object(capabilities) = capabilities else {
            unreachable!("it is written as an object");
        };
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(Capabilities::from_iter(capabilities))
            .connect(&driver)
            .await
            .expect("the driver starts a browser");
        Self { client }
    }

    /// Looks at a page.
    pub(crate) async fn look(&self, address: &str) -> Seen {
        self.client.goto(address).await.unwrap();
        let page = self.client.execute(LOOK, Vec::new()).await.unwrap();
        let text = |name: &str| page[name].as_str().unwrap_or_default().to_owned();
        let pictures = page["pictures"].as_array().into_iter().flatten();
        let missing = pictures.filter(|picture| picture[1] == 0);
        Seen {
            address: address.to_owned(),
            title: text("title"),
            heading: text("heading"),
            height: page["height"].as_f64().unwrap_or_default(),
            links: texts(&page["links"]),
            anchors: texts(&page["anchors"]),
            missing_pictures: missing
                .filter_map(|picture| picture[0].as_str().map(str::to_owned))
                .collect(),
            reports: self.reports().await,
        }
    }

    /// What the browser has reported since the last time.
    async fn reports(&self) -> Vec<String> {
        let log = self.client.issue_cmd(Log).await.unwrap();
        let entries = log.as_array().into_iter().flatten();
        // Warnings are the highlighter's, of languages that it does not know.
        let entries = entries.filter(|entry| entry["level"] == "SEVERE");
        entries
            .map(|entry| entry["message"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// Types words into the search of a book, and returns the addresses of what is found.
    pub(crate) async fn search(&self, book: &str, words: &str) -> Vec<String> {
        let client = &self.client;
        let first = format!("{book}/index.html");
        client.goto(&first).await.unwrap();
        let click = Locator::Css("#mdbook-search-toggle");
        let button = client.find(click).await.unwrap();
        button.click().await.unwrap();
        let field = client
            .find(Locator::Css("#mdbook-searchbar"))
            .await
            .unwrap();
        field.send_keys(words).await.unwrap();
        let found = async {
            loop {
                let words = vec![json!(words)];
                let found = client.execute(FOUND, words).await.unwrap();
                if !found.is_null() {
                    break texts(&found);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let found = tokio::time::timeout(SEARCH, found).await;
        found.unwrap_or_else(|_| panic!("the search for {words} does not end"))
    }
}

fn texts(list: &Value) -> Vec<String> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(|text| text.as_str().map(str::to_owned))
        .collect()
}

/// chromedriver's own command: what the browser has reported since the last time.
#[derive(Debug)]
struct Log;

impl WebDriverCompatibleCommand for Log {
    fn endpoint(
        &self,
        base: &url::Url,
        session: Option<&str>,
    ) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/se/log", session.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (
            http::Method::POST,
            Some(json!({ "type": "browser" }).to_string()),
        )
    }
}
