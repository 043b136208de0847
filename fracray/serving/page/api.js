// Asks the server. Knows its addresses, its errors, the token and when to ask again; no element of the page.

const WAIT = 2; // seconds before another try where a busy server names no time
const LONGEST_WAIT = 60;
const TOKEN = /^[!-~]+$/; // what a header can hold

/** What the server, or the way to it, says is wrong. */
export class ServerError extends Error {}

export class Server {
  /** askToken(wrong): a promise of the token that the user gives, null for none. waiting(seconds): a request waits for a
   *  busy server; 0: it goes on. */
  constructor(askToken, waiting) {
    this.askToken = askToken;
    this.waiting = waiting;
    this.token = null; // in memory only, so it is asked for again once the page is loaded again
    this.asking = null;
  }

  async model(signal) {
    return (await this.ask("model", { signal })).json();
  }

  /** The row of one file, with `heatmap` where wanted. */
  async predict(file, heatmap, signal) {
    const response = await this.ask(heatmap ? "predict?heatmap=1" : "predict", { method: "POST", body: form(file), signal });
    const { rows } = await response.json();
    return rows[0];
  }

  /** The DICOM SR of one DICOM file, as a Blob. */
  async report(file) {
    return (await this.ask("predict?format=dicom-sr", { method: "POST", body: form(file) })).blob();
  }

  /** The stored values of one file: {buffer, width, height, bits, center, window, inverted}. progress(bytes, of). */
  async picture(file, progress, signal) {
    const response = await this.ask("picture", { method: "POST", body: form(file), signal });
    const number = (name) => Number(response.headers.get(name));
    const [width, height] = [number("X-Width"), number("X-Height")];
    const bytes = new Uint8Array(2 * width * height);
    const reader = response.body.getReader();
    let at = 0;
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      if (at + value.length > bytes.length) throw new ServerError("The server sent more pixels than it announced.");
      bytes.set(value, at);
      at += value.length;
      progress(at, bytes.length);
    }
    if (at !== bytes.length) throw new ServerError("The picture did not arrive in full. Open it again.");
    return {
      buffer: bytes.buffer,
      width,
      height,
      bits: number("X-Bits"),
      center: number("X-Window-Center"),
      window: number("X-Window-Width"),
      inverted: number("X-Inverted") === 1,
    };
  }

  async ask(path, options) {
    for (;;) {
      const token = this.token;
      const headers = token === null ? {} : { Authorization: `Bearer ${token}` };
      const response = await fetch(path, { ...options, headers, cache: "no-store" }).catch((error) => {
        if (error.name === "AbortError") throw error;
        throw new ServerError("The server does not answer. Is it still running?");
      });
      if (response.ok) return response;
      if (response.status === 401) await this.renew(token);
      else if (response.headers.has("Retry-After")) await this.wait(response, options.signal);
      else throw new ServerError(await reason(response));
    }
  }

  /** Ask the user for a token, once for all requests that wait for it. */
  async renew(refused) {
    if (this.token !== refused) return; // another request has a new one
    this.asking ??= this.sendable(refused !== null).finally(() => {
      this.asking = null;
    });
    const given = await this.asking;
    if (given === null) throw new ServerError("The server wants a token, and none was given.");
    if (this.token === refused) this.token = given;
  }

  /** A token from the user that a browser can send, asked for until it is one; null for none. */
  async sendable(wrong) {
    const given = await this.askToken(wrong);
    return given === null || TOKEN.test(given) ? given : this.sendable(true);
  }

  async wait(response, signal) {
    const named = Number(response.headers.get("Retry-After"));
    const seconds = Math.min(LONGEST_WAIT, named > 0 ? named : WAIT);
    await response.body?.cancel();
    this.waiting(seconds);
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
    this.waiting(0);
    signal?.throwIfAborted();
  }
}

function form(file) {
  const data = new FormData();
  data.append("files", file, file.name);
  return data;
}

async function reason(response) {
  const text = await response.text();
  try {
    const { error } = JSON.parse(text);
    if (typeof error === "string") return error;
  } catch {
    // Not the server's own words: a proxy, say.
  }
  return `The server answered ${response.status} ${response.statusText}`.trim();
}
