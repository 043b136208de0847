// From the server's heatmap to an image that can be laid over the picture. Asks no server.

const GLOW = [255, 60, 60]; // as in the overlays of fracray.predict

/** base64: of a gray PNG. A canvas in one colour, whose opacity is the gray value. */
export async function decodeHeatmap(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const image = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
  const canvas = new OffscreenCanvas(image.width, image.height);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, image.width, image.height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    const level = pixels.data[at];
    pixels.data.set(GLOW, at);
    pixels.data[at + 3] = level;
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}
