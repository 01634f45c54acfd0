// What the server answers beside runs is told to the document: whoever asked listens.
function tell() {
  if (props.value?.id) document.dispatchEvent(new CustomEvent("nestar:answer", { detail: { ...props.value } }));
}
watch("value", tell);
tell();
