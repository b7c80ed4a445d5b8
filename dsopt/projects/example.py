"""The program around a model that every project has: it runs the model on its test vectors and says what came out."""

from __future__ import annotations

from dsopt.projects.model import Model


def usage(model: Model) -> str:
    """Return the comment that shows how to call the model."""
    p = model.name
    return f"""/* Runs the model on the inputs that it was tested with. In a program of your own:

       {p}_init();                         once
       write the input to {p}_input(0);    before every run, {model.macro}_INPUT_0_BYTES bytes
       {p}_run();
       read the result from {p}_output(0);

   Written by dsopt, and yours to change. */
"""


def main_c(model: Model, entry: str = "int main(void)") -> str:
    """Return the text of main.c. entry: the function's head; one that gives nothing ends without a value."""
    end = "    return failures == 0 ? 0 : 1;\n" if entry.startswith("int") else ""
    return f"""{usage(model)}#include "{model.name}.h"

#include <stdio.h>

int {model.name}_run_tests(void);
{"" if " main(" in entry else f"{entry};{chr(10)}"}
{entry}
{{
    const int failures = {model.name}_run_tests();
    const {model.macro}_OUTPUT_0_TYPE *output = (const {model.macro}_OUTPUT_0_TYPE *){model.name}_output(0);
    printf("{model.name}: %d of %d outputs differ from the trained model\\n", failures, {model.macro}_OUTPUT_COUNT);
    printf("the first value of output 0 is %g\\n", (double)output[0]);
{end}}}
"""


def sketch(model: Model) -> str:
    """Return the text of an Arduino sketch."""
    return f"""{usage(model)}#include <{model.name}.h>

extern "C" int {model.name}_run_tests(void);

void setup() {{
  Serial.begin(115200);
  while (!Serial && millis() < 3000) {{
  }}
  const unsigned long before = micros();
  const int failures = {model.name}_run_tests();
  const unsigned long after = micros();
  Serial.print("{model.name}: ");
  Serial.print(failures);
  Serial.println(" outputs differ from the trained model");
  Serial.print("microseconds with the comparison: ");
  Serial.println(after - before);
}}

void loop() {{
}}
"""
