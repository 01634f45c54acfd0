// The place of a visitor's call in the queue is told to the document: whoever waits for it listens.
function tell() {
  if (props.value?.id) document.dispatchEvent(new CustomEvent("nestar:place", { detail: { ...props.value } }));
}
watch("value", tell);
tell();
